// Enough of CUDA to run the kernels of pyseg/*.cuh on the CPU, for tests on machines without a GPU.
//
// The threads of a block are contexts that one system thread runs in random order: a context runs
// until it waits for its warp or its block. In half of the blocks one warp is scheduled first as
// far as barriers allow, so that it overtakes the others by more than random order does. So shared
// memory needs no locks, results repeat with the seed, and a missing barrier shows as a difference
// between seeds or, since shared memory starts as NaN, as NaN. Blocks run one after another, in
// random order too. A deadlock ends the program with a message.
//
// This file replaces cuda_runtime.h, and pyseg/cuda/ptx.cuh beside it replaces that of the kernels.
// It cannot show speed, or a misunderstanding of the GPU's instructions.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static  // one variable for all contexts

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr int kMostShared = 232448;  // bytes a block, on sm_90

inline uint4 dynamic_shared[kMostShared / sizeof(uint4)];

[[noreturn]] inline void fail(const char* what) {
  std::printf("FAILED: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::exit(1);
}

inline std::mt19937& generator() {
  static std::mt19937 state(1);
  return state;
}

// A barrier: when all expected threads have arrived, all continue.
struct Barrier {
  std::vector<int> waiting;
  int expected = 0;
};

// The values that a warp's lanes exchange: two per lane, since a lane that continues may write the
// next one before all have read this one.
struct Exchange {
  std::array<std::array<uint64_t, 4>, kWarp> values[2];
};

class Block {
 public:
  static Block*& current() {
    static Block* block = nullptr;
    return block;
  }

  Block(int threads, const std::function<void()>& kernel)
      : number_(++made()),
        kernel_(kernel),
        warps_((threads + kWarp - 1) / kWarp),
        exchanges_(warps_.size()),
        exchanged_(threads) {
    if (threads > kMostThreads) fail("a block of too many threads");
    all_.expected = threads;
    for (int i = 0; i < threads; ++i) ++warps_[i / kWarp].expected;
    if (generator()() % 2 == 0) first_warp_ = static_cast<int>(generator()() % warps_.size());
    for (int i = 0; i < threads; ++i) make_ready(i);
  }

  void run() {
    current() = this;
    if (const int first = next(); first >= 0) change(outside_, state(first));
    current() = nullptr;
    if (all_.expected != 0) fail("threads wait for others that never arrive");
  }

  void sync_block(bool vote) {
    any_ = any_ || vote;
    wait(all_);
  }
  // Whether any thread's vote at the last barrier of the block was true.
  bool voted() const { return result_; }

  void sync_warp() { wait(warps_[thread_ / kWarp]); }

  // Publishes `mine` to the warp; returns a function of the lane that gives that lane's value.
  template <typename T>
  auto exchange(const T& mine) {
    static_assert(sizeof(T) <= sizeof(exchanges_[0].values[0][0]));
    auto& values = exchanges_[thread_ / kWarp].values[exchanged_[thread_]++ % 2];
    std::memcpy(&values[thread_ % kWarp], &mine, sizeof(T));
    sync_warp();
    return [&values](int lane) {
      T other;
      std::memcpy(&other, &values[lane], sizeof(T));
      return other;
    };
  }

  int thread() const { return thread_; }
  int lane() const { return thread_ % kWarp; }
  int64_t number() const { return number_; }  // unique

 private:
  static constexpr size_t kStack = 256 << 10;

  // A thread, used by all blocks, as making one takes system calls.
  struct State {
    ucontext_t context;  // where it begins
    jmp_buf place;       // where it goes on
    bool begun = false;
    std::unique_ptr<char[]> stack;
  };

  static int64_t& made() {
    static int64_t count = 0;
    return count;
  }

  static State& state(int i) {
    static std::vector<State> states(kMostThreads);
    if (states[i].stack == nullptr) prepare(states[i]);
    return states[i];
  }

  // Not inlined: getcontext returns twice, after which a caller's variables may be wrong.
  [[gnu::noinline]] static void prepare(State& state) {
    state.stack.reset(new char[kStack]);
    getcontext(&state.context);
    state.context.uc_stack.ss_sp = state.stack.get();
    state.context.uc_stack.ss_size = kStack;
    state.context.uc_link = nullptr;
    makecontext(&state.context, begin, 0);
  }

  static void begin() {
    for (;;) {  // after its end in one block it goes on in another
      Block& block = *current();
      block.kernel_();
      block.end();
    }
  }

  void make_ready(int i) { (i / kWarp == first_warp_ ? ready_first_ : ready_).push_back(i); }

  // Makes a random ready thread the current one and returns it; -1: none is ready.
  int next() {
    std::vector<int>& ready = ready_first_.empty() ? ready_ : ready_first_;
    if (ready.empty()) return -1;
    std::swap(ready[generator()() % ready.size()], ready.back());
    thread_ = ready.back();
    ready.pop_back();
    threadIdx.x = static_cast<unsigned>(thread_);
    return thread_;
  }

  void switch_from(int self) {
    const int other = next();
    if (other == self) return;
    change(state(self), other < 0 ? outside_ : state(other));
  }

  // Goes on with another state. swapcontext would make a system call each time, for signals.
  [[gnu::noinline]] static void change(State& from, State& to) {
    from.begun = true;
    if (_setjmp(from.place) != 0) return;  // somebody has gone on with `from`
    if (to.begun) _longjmp(to.place, 1);
    setcontext(&to.context);
  }

  void wait(Barrier& barrier) {
    const int self = thread_;
    barrier.waiting.push_back(self);
    open(barrier);
    switch_from(self);
  }

  void open(Barrier& barrier) {
    if (static_cast<int>(barrier.waiting.size()) < barrier.expected) return;
    if (&barrier == &all_) result_ = std::exchange(any_, false);
    for (const int i : barrier.waiting) make_ready(i);
    barrier.waiting.clear();
  }

  // Barriers no longer wait for a thread that has returned.
  void end() {
    const int self = thread_;
    for (Barrier* barrier : {&warps_[self / kWarp], &all_}) {
      --barrier->expected;
      if (!barrier->waiting.empty()) open(*barrier);
    }
    switch_from(self);
  }

  const int64_t number_;
  const std::function<void()>& kernel_;
  std::vector<Barrier> warps_;
  std::vector<Exchange> exchanges_;
  std::vector<int> exchanged_;  // how often, by thread
  Barrier all_;
  int first_warp_ = -1;                   // the warp that is scheduled first; -1: none
  std::vector<int> ready_first_, ready_;  // its threads and the others
  State outside_;
  int thread_ = 0;
  bool any_ = false, result_ = false;
};

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  if (config->dynamicSmemBytes > emulation::kMostShared) return cudaErrorInvalidConfiguration;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  std::vector<unsigned> blocks(gridDim.x);
  for (unsigned i = 0; i < gridDim.x; ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), emulation::generator());
  const std::function<void()> call = [&] { kernel(static_cast<Parameters>(arguments)...); };
  for (const unsigned block : blocks) {
    blockIdx.x = block;
    std::memset(emulation::dynamic_shared, 0xff, config->dynamicSmemBytes);  // NaN of every type
    emulation::Block(static_cast<int>(blockDim.x), call).run();
  }
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount            ? 132
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? emulation::kMostShared
                                                                  : 9;
  return cudaSuccess;
}

inline void __syncthreads() { emulation::Block::current()->sync_block(false); }
inline int __syncthreads_or(int vote) {
  emulation::Block& block = *emulation::Block::current();
  block.sync_block(vote != 0);
  return block.voted();
}
inline void __syncwarp() { emulation::Block::current()->sync_warp(); }
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  if (mask != 0xffffffffu) emulation::fail("a shuffle of part of a warp");
  return emulation::Block::current()->exchange(value)(lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  return __shfl_sync(mask, value, emulation::Block::current()->lane() ^ offset);
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}

template <typename To, typename From>
To emulated_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline uint32_t __float_as_uint(float x) { return emulated_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return emulated_cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_cast<double>(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <typename T>
T atomicExch(T* address, T value) {
  return std::exchange(*address, value);
}
