// Shared by the CUDA kernels: types and their conversions, sums over a warp, launches, workspaces.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace pyseg {
namespace gpu {

constexpr int kWarp = 32;

// The type in which sums over values of type T are kept.
template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <typename T>
using Sum = typename SumOf<T>::type;

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void narrow(float value, float& result) { result = value; }
__device__ inline void narrow(double value, double& result) { result = value; }
__device__ inline void narrow(float value, __half& result) { result = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16& result) {
  result = __float2bfloat16_rn(value);
}

// narrow(), but a finite value beyond the range of T becomes T's largest, not infinity.
template <typename T>
__device__ inline void narrow_saturated(Sum<T> value, T& result) {
  narrow(value, result);
}
template <>
__device__ inline void narrow_saturated<__half>(float value, __half& result) {
  narrow(isfinite(value) ? fminf(fmaxf(value, -65504.f), 65504.f) : value, result);
}

__device__ inline float exponential(float value) { return expf(value); }
__device__ inline double exponential(double value) { return exp(value); }
__device__ inline float maximum(float a, float b) { return fmaxf(a, b); }
__device__ inline double maximum(double a, double b) { return fmax(a, b); }
__device__ inline float inverse_root(float value) { return 1.f / sqrtf(value); }
__device__ inline double inverse_root(double value) { return 1. / sqrt(value); }

__host__ __device__ constexpr int64_t quotient(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// The group of a row of a video. A video has fewer than 2^31 rows, and a 64-bit remainder would
// take a hundred instructions.
__device__ inline int group_of(int64_t n, int64_t groups) {
  return static_cast<int>(static_cast<uint32_t>(n) % static_cast<uint32_t>(groups));
}

// Reductions over the lanes of a warp whose numbers differ only in the bits kFirst to kLast / 2; in
// a fixed order, with the result in every lane.
template <int kFirst = 1, int kLast = kWarp, typename A>
__device__ inline A warp_maximum(A value) {
#pragma unroll
  for (int offset = kFirst; offset < kLast; offset *= 2) {
    value = maximum(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}
template <int kFirst = 1, int kLast = kWarp, typename A>
__device__ inline A warp_sum(A value) {
#pragma unroll
  for (int offset = kFirst; offset < kLast; offset *= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Loads kCount adjacent values and widens them. With `aligned` they are a multiple of 16 bytes, on
// a 16-byte boundary, and all exist; otherwise values from `count` on become 0.
template <int kCount, typename T>
__device__ inline void load_values(const T* source, int64_t count, bool aligned,
                                   Sum<T> (&result)[kCount]) {
  constexpr int kPerLoad = sizeof(uint4) / sizeof(T);
  if constexpr (kCount % kPerLoad == 0) {
    if (aligned) {
#pragma unroll
      for (int i = 0; i < kCount; i += kPerLoad) {
        T values[kPerLoad];
        const uint4 bits = *reinterpret_cast<const uint4*>(source + i);
        memcpy(values, &bits, sizeof(bits));
#pragma unroll
        for (int j = 0; j < kPerLoad; ++j) result[i + j] = widen(values[j]);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) result[i] = i < count ? widen(source[i]) : Sum<T>{0};
}

// Stores them likewise, rounded to nearest.
template <int kCount, typename T>
__device__ inline void store_values(const Sum<T> (&values)[kCount], int64_t count, bool aligned,
                                    T* result) {
  constexpr int kPerStore = sizeof(uint4) / sizeof(T);
  if constexpr (kCount % kPerStore == 0) {
    if (aligned) {
#pragma unroll
      for (int i = 0; i < kCount; i += kPerStore) {
        T narrowed[kPerStore];
#pragma unroll
        for (int j = 0; j < kPerStore; ++j) narrow(values[i + j], narrowed[j]);
        uint4 bits;
        memcpy(&bits, narrowed, sizeof(bits));
        *reinterpret_cast<uint4*>(result + i) = bits;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) narrow(values[i], result[i]);
  }
}

// Whether every row of `width` values from `pointer` on starts on a 16-byte boundary.
template <typename T>
__host__ __device__ inline bool rows_aligned(const T* pointer, int64_t width) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0 &&
         width * sizeof(T) % sizeof(uint4) == 0;
}

// Launches a kernel over `blocks` blocks, none where that is 0, and returns the launch's error.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
                   cudaStream_t stream, const Arguments&... arguments) {
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  if (blocks == 0) return cudaSuccess;
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  if (shared > kSharedWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim.x = static_cast<unsigned>(blocks);
  config.blockDim.x = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();  // resets it: a later call would report it again
  return error;
}

// Allocates arrays from one block of memory, each on a 256-byte boundary. From null it only counts.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  template <typename A>
  A* take(int64_t count) {
    constexpr int64_t kBoundary = 256;
    const int64_t start = size_;
    size_ += quotient(count * int64_t{sizeof(A)}, kBoundary) * kBoundary;
    return memory_ == nullptr ? nullptr : reinterpret_cast<A*>(memory_ + start);
  }

  int64_t size() const { return size_; }

 private:
  std::byte* memory_;
  int64_t size_ = 0;
};

// The properties of the current device that plans depend on.
struct Device {
  int multiprocessors = 1;
  int shared = 0;             // bytes of shared memory that a block can ask for
  bool tensor_cores = false;  // with bfloat16, TF32 and asynchronous copies: from sm_80 on
};

inline cudaError_t current_device(Device& result) {
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  read(result.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(result.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(major, cudaDevAttrComputeCapabilityMajor);
  result.tensor_cores = major >= 8;
  return error;
}

}  // namespace gpu
}  // namespace pyseg
