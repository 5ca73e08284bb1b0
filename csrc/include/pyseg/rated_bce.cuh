// Weighted binary cross-entropy of incompletely rated rows on a GPU; equations and names are those
// of pyseg/rated_bce.h, its twin on the CPU. No framework: raw device pointers, sizes and a stream;
// the launchers return the first error of their launches.
//
// A block takes a row, in tiles of kTile classes. Each thread first issues its 16-byte loads of the
// logits; while they are in flight, the block builds the tile's targets in shared memory: one
// rating after another, the relations of one in parallel, since those are distinct classes. y and w
// share one number there: y, or -score where a class is rated. Then the losses replace the targets,
// and thread (class modulo kThreads) sums them, so that the order of a sum does not depend on the
// alignment of its row.
//
// A kernel cannot throw. Invalid input never causes an access outside its array, and makes its
// row's loss and gradient NaN: offsets that decrease or leave the array, classes out of range or
// twice in a row, scores and P' outside [0, 1].
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "pyseg/cuda/common.cuh"
#include "pyseg/rated_bce_shape.h"

namespace pyseg {
namespace gpu {
namespace rated_bce {

constexpr int kThreads = 256;
constexpr int kPerThread = 16;
constexpr int kTile = kThreads * kPerThread;
// Blocks that a multiprocessor must hold: 64 registers a thread, 128 for double.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;
template <typename T>
constexpr int kVector = static_cast<int>(sizeof(uint4) / sizeof(T));  // values of one access

// Enough blocks of scale_kernel for every multiprocessor of a large GPU.
constexpr int64_t kScaleBlocks = 1024;

// A row's weight in the mean, and what the gradient lacks of it, see pyseg/rated_bce.h.
template <typename T>
Sum<T> share(int64_t batch) {
  return std::is_same_v<T, __half> ? 1 : 1 / static_cast<Sum<T>>(batch);
}
template <typename T>
Sum<T> missing_share(int64_t batch) {
  return std::is_same_v<T, __half> ? 1 / static_cast<Sum<T>>(batch) : 1;
}

// 1 / x for 1 <= x <= 2. With one Newton step the approximation is nearly as accurate as a
// division, which has a branch for other x.
__device__ inline float reciprocal(float x) {
  const float approximate = __fdividef(1.f, x);
  return approximate * (2.f - x * approximate);
}
__device__ inline double reciprocal(double x) { return 1. / x; }

// log(1 + x) for 0 <= x <= 1
__device__ inline float log1p_unit(float x) {
  log1p_polynomial(x);
  return x;
}
__device__ inline double log1p_unit(double x) { return log1p(x); }

// Writes a value and returns the old one, atomically.
__device__ inline float exchange(float* address, float value) { return atomicExch(address, value); }
__device__ inline double exchange(double* address, double value) {
  return __longlong_as_double(static_cast<long long>(
      atomicExch(reinterpret_cast<unsigned long long*>(address),
                 static_cast<unsigned long long>(__double_as_longlong(value)))));
}

template <typename A>
__device__ inline bool in_unit(A value) {
  return value >= 0 && value <= 1;  // a NaN is not
}

// Writes the targets of the classes from `first` on, -score where one is rated, from the ratings
// begin <= r < end of a row. Returns whether all that this thread has read is valid.
template <typename T>
__device__ inline bool make_targets(const RatedBceInput<T, Sum<T>>& in, int64_t begin, int64_t end,
                                    int64_t first, Sum<T> (&targets)[kTile]) {
  using A = Sum<T>;
  const auto& ratings = in.ratings;
  const auto& correlation = in.correlation;
  bool right = true;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) targets[threadIdx.x + i * kThreads] = 0;
  __syncthreads();
  if (correlation.offsets != nullptr) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = ratings.classes[r];
      if (i < 0 || i >= in.classes) continue;  // the same for all threads; reported below
      const int64_t from = correlation.offsets[i], to = correlation.offsets[i + 1];
      if (from < 0 || from > to || to > correlation.size) {
        right = false;
        continue;
      }
      const A e = evidence(ratings.scores[r], in.absent_evidence);
      for (int64_t p = from + threadIdx.x; p < to; p += kThreads) {
        const int64_t j = correlation.columns[p];
        const A value = correlation.values[p];
        if (j < 0 || j >= in.classes || !in_unit(value)) {
          right = false;
        } else if (j >= first && j - first < kTile) {
          A& y = targets[j - first];
          const A sum = y + e * value;
          y = sum < 1 ? sum : A{1};
        }
      }
      __syncthreads();
    }
  }
  for (int64_t r = begin + threadIdx.x; r < end; r += kThreads) {
    const int64_t j = ratings.classes[r];
    const A score = ratings.scores[r];
    if (j < 0 || j >= in.classes || !in_unit(score)) {
      right = false;
    } else if (j >= first && j - first < kTile) {
      // The second of two ratings of a class finds the first one's sign.
      right = !signbit(exchange(&targets[j - first], -fabs(score))) && right;
    }
  }
  __syncthreads();
  return right;
}

template <typename A>
struct Term {
  A loss, gradient;
};

template <typename A>
__device__ inline Term<A> term(A z, A target, A rated_weight, A unrated_weight, A share) {
  const A y = fabs(target), w = signbit(target) ? rated_weight : unrated_weight;
  const A e = exponential(-fabs(z));
  const A inverse = reciprocal(1 + e);
  const A sigmoid = z < 0 ? e * inverse : inverse;
  // softplus(z) - y z, without cancellation where z is large
  return {w * (log1p_unit(e) + (z > 0 ? z * (1 - y) : -y * z)), w * (sigmoid - y) * share};
}

// The sum over all threads of the block, returned to each; a kernel may call it once.
template <typename A>
__device__ inline A block_sum(A value) {
  __shared__ A partial[kThreads / kWarp];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  A total = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) total += partial[i];
  return total;
}

// loss[b] and, unless null, gradient[b,:]. One block per row.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    rows_kernel(RatedBceInput<T, Sum<T>> in, Sum<T> share, Sum<T>* loss, T* gradient) {
  using A = Sum<T>;
  constexpr int kWidth = kVector<T>, kVectors = kPerThread / kWidth;
  __shared__ __align__(16) A targets[kTile];
  const int64_t b = blockIdx.x, classes = in.classes;
  const T* const z_row = in.logits + b * classes;
  T* const gradient_row = gradient == nullptr ? nullptr : gradient + b * classes;
  // Accesses are aligned to 16 bytes, so the first may begin `lead` values before the row, and the
  // last may end after it; those two are made value by value.
  const auto past_boundary = [](const T* pointer) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) / sizeof(T));
  };
  const int lead = past_boundary(z_row);
  const bool gradient_alike = past_boundary(gradient_row) == lead;

  int64_t begin = in.ratings.offsets[b], end = in.ratings.offsets[b + 1];
  bool right = begin >= 0 && begin <= end && end <= in.ratings.size && (b > 0 || begin == 0);
  if (!right) begin = end = 0;

  A total = 0;
  int64_t first = -lead;  // the class of the tile's first place
  do {
    // Places low <= p < high are classes; an access to kWidth classes is `whole`.
    const int low = first < 0 ? lead : 0;
    const int high = classes - first < kTile ? static_cast<int>(classes - first) : kTile;
    const auto whole = [&](int place) { return place >= low && place + kWidth <= high; };
    uint4 bits[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int place = (v * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      const T* const source = z_row + first + place;
      if (whole(place)) {
        bits[v] = *reinterpret_cast<const uint4*>(source);
      } else {
        T some[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          if (place + i >= low && place + i < high) {
            some[i] = source[i];
          } else {
            narrow(0.f, some[i]);
          }
        }
        memcpy(&bits[v], some, sizeof(some));
      }
    }
    right = make_targets(in, begin, end, first, targets) && right;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int place = (v * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (place >= high) break;  // targets of 0 are losses of 0
      T z[kWidth];
      memcpy(z, &bits[v], sizeof(z));
      A losses[kWidth], slopes[kWidth];  // at first the targets
      load_values(targets + place, kWidth, true, losses);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const Term<A> result =
            term(widen(z[i]), losses[i], in.rated_weight, in.unrated_weight, share);
        losses[i] = place + i >= low && place + i < high ? result.loss : A{0};
        slopes[i] = result.gradient;
      }
      store_values(losses, kWidth, true, targets + place);
      if (gradient_row == nullptr) continue;
      T* const slope = gradient_row + first + place;
      if (gradient_alike && whole(place)) {
        store_values(slopes, kWidth, true, slope);
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          if (place + i >= low && place + i < high) narrow(slopes[i], slope[i]);
        }
      }
    }
    __syncthreads();
    const int place = (static_cast<int>(threadIdx.x) + lead) % kThreads;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) total += targets[place + i * kThreads];
    __syncthreads();
    first += kTile;
  } while (first < classes);

  total = block_sum(total);
  const bool wrong = __syncthreads_or(!right);
  const A nan = static_cast<A>(NAN);
  if (threadIdx.x == 0) loss[b] = wrong ? nan : total;
  if (!wrong || gradient_row == nullptr) return;
  for (int64_t j = threadIdx.x; j < classes; j += kThreads) narrow(nan, gradient_row[j]);
}

// The mean of the rows' losses; one block, each thread of which takes every kThreads-th row.
template <typename A>
__global__ void __launch_bounds__(kThreads) mean_kernel(const A* row_loss, int64_t batch, A* loss) {
  double total = 0;
  for (int64_t b = threadIdx.x; b < batch; b += kThreads) total += row_loss[b];
  total = block_sum(total);
  if (threadIdx.x == 0) *loss = batch == 0 ? A{0} : static_cast<A>(total / batch);
}

// result = factor * grad_output * gradient, arrays of `size` that may be one and the same. Then a
// scale of 1, which the device alone knows, leaves nothing to read or write. A thread makes one
// access at a time, or takes as many single values where the two are not equally aligned.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const T* gradient, const Sum<T>* grad_output, Sum<T> factor, int64_t size,
                 T* result) {
  constexpr int kWidth = kVector<T>;
  const Sum<T> scale = factor * *grad_output;
  if (scale == 1 && result == gradient) return;
  const bool aligned = rows_aligned(gradient, kWidth) && rows_aligned(result, kWidth);
  const int64_t step = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth; i < size; i += step) {
    const bool whole = aligned && i + kWidth <= size;
    Sum<T> values[kWidth];
    load_values(gradient + i, size - i, whole, values);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values[k] *= scale;
    store_values(values, size - i, whole, result + i);
  }
}

}  // namespace rated_bce
}  // namespace gpu

// The mean loss, and unless null its gradient (B, C), in float16 B times that; see
// pyseg/rated_bce.h. row_loss (B) is workspace.
template <typename T>
cudaError_t launch_rated_bce(const RatedBceInput<T, gpu::Sum<T>>& in, gpu::Sum<T>* loss,
                             T* gradient, gpu::Sum<T>* row_loss, cudaStream_t stream) {
  using namespace gpu::rated_bce;
  const cudaError_t error = gpu::launch(rows_kernel<T>, in.batch, kThreads, 0, stream, in,
                                        share<T>(in.batch), row_loss, gradient);
  if (error != cudaSuccess) return error;
  return gpu::launch(mean_kernel<gpu::Sum<T>>, 1, kThreads, 0, stream, row_loss, in.batch, loss);
}

// result = grad_output times the gradient of launch_rated_bce, (B, C); the two may be one array.
template <typename T>
cudaError_t launch_rated_bce_backward(const gpu::Sum<T>* grad_output, const T* gradient,
                                      int64_t batch, int64_t classes, T* result,
                                      cudaStream_t stream) {
  using namespace gpu::rated_bce;
  const int64_t size = batch * classes, blocks = gpu::quotient(size, kThreads * kVector<T>);
  return gpu::launch(scale_kernel<T>, blocks < kScaleBlocks ? blocks : kScaleBlocks, kThreads, 0,
                     stream, gradient, grad_output, missing_share<T>(batch), size, result);
}

}  // namespace pyseg
