// The dequantisation of frames on a GPU, in one pass; the equation is in pyseg/dequantize_shape.h.
// No framework: raw device pointers, sizes and a stream; the launcher returns its launch's error.
//
// A thread takes the same kValues columns of every rows_at_once-th row, so that it reads what its
// bytes stand for once, into registers. kValues fill one 16-byte store: 8 in 16 bits, from one
// 8-byte load. Both are then adjacent in adjacent lanes; 16-byte loads would need two stores, each
// with gaps of 16 bytes. Four rows are loaded before the first is stored. The bytes of rows that
// are not valid are not read. Where rows are not aligned, a thread takes one column.
//
// With B = 80, T = 300, N = 1152 and bfloat16 it reads 27.6 MB and writes 55.3.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "pyseg/cuda/common.cuh"
#include "pyseg/dequantize_shape.h"

namespace pyseg {
namespace gpu {
namespace dequantize {

constexpr int kThreads = 256;
constexpr int kRows = 4;  // loaded together
// Threads of a launch: twice as many as a GPU runs at a time.
constexpr int64_t kMostThreads = int64_t{1} << 19;

// The bytes of kCount values, as one load.
template <int kCount>
using Bytes = std::conditional_t<
    kCount == 8, uint2,
    std::conditional_t<kCount == 4, uint32_t, std::conditional_t<kCount == 2, uint16_t, uint8_t>>>;

__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <typename T, int kValues>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const StoredFrames<Sum<T>> in, const int64_t rows_at_once,
                      T* __restrict__ values) {
  using A = Sum<T>;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t chunks = in.width / kValues, first = thread / chunks;
  if (first >= rows_at_once) return;
  const int64_t n = (thread - first * chunks) * kValues;
  A zero_point[kValues], scale[kValues], offset[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const bool given = in.dequantization != nullptr;
    zero_point[i] = given ? in.dequantization[n + i] : A{0};
    scale[i] = given ? in.dequantization[in.width + n + i] : static_cast<A>(kByteScale);
    offset[i] = given ? in.dequantization[2 * in.width + n + i] : static_cast<A>(kByteOffset);
  }
  for (int64_t start = first; start < in.rows; start += kRows * rows_at_once) {
    bool valid[kRows];
    Bytes<kValues> loaded[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t r = start + j * rows_at_once;
      valid[j] = r < in.rows && (in.valid == nullptr || in.valid[r]);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t r = start + j * rows_at_once;
      loaded[j] = {};
      if (valid[j]) {
        loaded[j] = *reinterpret_cast<const Bytes<kValues>*>(in.bytes + r * in.stride + n);
      }
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t r = start + j * rows_at_once;
      if (r >= in.rows) break;
      uint8_t bytes[kValues];
      memcpy(bytes, &loaded[j], sizeof(bytes));
      A x[kValues];
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const A difference = static_cast<A>(bytes[i]) - zero_point[i];
        x[i] = valid[j] ? multiply_add(difference, scale[i], offset[i]) : A{0};
      }
      T* const result = values + r * in.width + n;
      if constexpr (kValues == 1) {
        narrow(x[0], *result);
      } else {  // __stcg keeps the compiler from storing each word by itself
        T narrowed[kValues];
#pragma unroll
        for (int i = 0; i < kValues; ++i) narrow(x[i], narrowed[i]);
        uint4 bits;
        memcpy(&bits, narrowed, sizeof(bits));
        __stcg(reinterpret_cast<uint4*>(result), bits);
      }
    }
  }
}

template <typename T>
constexpr int kVector = static_cast<int>(sizeof(uint4) / sizeof(T));

// Whether every row of both sides allows vector accesses.
template <typename T>
bool aligned(const StoredFrames<Sum<T>>& in, const T* values) {
  return rows_aligned(values, in.width) && in.stride % kVector<T> == 0 &&
         reinterpret_cast<uintptr_t>(in.bytes) % kVector<T> == 0;
}

template <typename T, int kValues>
cudaError_t launch(const StoredFrames<Sum<T>>& in, T* values, int64_t most_threads,
                   cudaStream_t stream) {
  const int64_t chunks = in.width / kValues;
  const int64_t steps = quotient(in.rows * chunks, kRows * most_threads);
  const int64_t rows_at_once = quotient(in.rows, kRows * steps);
  return gpu::launch(dequantize_kernel<T, kValues>, quotient(rows_at_once * chunks, kThreads),
                     kThreads, 0, stream, in, rows_at_once, values);
}

}  // namespace dequantize
}  // namespace gpu

// Writes x, (rows, width), with at most `most_threads` threads, but one row's at least.
template <typename T>
cudaError_t launch_dequantize(const StoredFrames<gpu::Sum<T>>& in, T* values, cudaStream_t stream,
                              int64_t most_threads = gpu::dequantize::kMostThreads) {
  namespace impl = gpu::dequantize;
  if (in.rows == 0 || in.width == 0) return cudaSuccess;
  return impl::aligned(in, values)
             ? impl::launch<T, impl::kVector<T>>(in, values, most_threads, stream)
             : impl::launch<T, 1>(in, values, most_threads, stream);
}

}  // namespace pyseg
