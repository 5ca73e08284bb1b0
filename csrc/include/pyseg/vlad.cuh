// Soft-assignment aggregation of NetVLAD and NeXtVLAD on a GPU; equations and names are those of
// pyseg/vlad.h, its twin on the CPU. No framework: raw device pointers, sizes and a stream; the
// launchers return the first error of their launches.
//
// T is float, double, __half or __nv_bfloat16; sums are kept in float (double for double). Every
// sum has one owner and a fixed order: no atomics, the same input gives the same bits.
//
// The softmax needs a whole row of K scores, the products only tiles of them. So a first kernel
// leaves two numbers a row, from which every tile recomputes its weights: nothing of size
// (B, T, G, K) is written but the gradient that is asked for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace vlad_cuda {

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

// The same, but a finite value beyond the range of T becomes T's largest, not infinity.
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
__device__ inline float inverse_root(float value) { return 1.f / sqrtf(value); }
__device__ inline double inverse_root(double value) { return 1. / sqrt(value); }

// What the kernels leave for each other, in memory of the caller.
template <typename A>
struct Row {
  A largest;  // max_k assignment[n,k]
  A scale;    // 1 / sum_k exp(assignment[n,k] - largest)
};
template <typename A>
struct ForwardWorkspace {
  Row<A>* rows;    // (B, T * G)
  A* vlad;         // (B, F, K): v before its normalisation
  A* square_sums;  // (B, tiles(F), K): sum of v^2 over a tile of F
};
template <typename A>
struct BackwardWorkspace {
  Row<A>* rows;  // (B, T * G)
  A* columns;    // (B, 3, K): scale, projection (see pyseg/vlad.h) and s[k] = -sum_f d[f,k] c[f,k]
  A* attention;  // (B, T * G): the gradient of attention before rounding
};

constexpr int kTile = 64;      // a block of kThreads threads computes 64 x 64 sums,
constexpr int kDepth = 16;     // 16 terms at a time,
constexpr int kPerThread = 4;  // a thread 4 x 4 of them
constexpr int kLanes = kTile / kPerThread;
constexpr int kThreads = kLanes * kLanes;
// Blocks a multiprocessor must hold: 128 registers a thread, 255 for double. Left to itself ptxas
// allows 64 and spills.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 1 : 2;
constexpr int kColumns = 32;  // a block of column sums: 32 columns, 8 threads each
constexpr int kSlices = 8;
constexpr int kWarp = 32;

// At least 1, so that sums over nothing are written as well.
__host__ __device__ inline int64_t tiles(int64_t size) {
  return size > 0 ? (size + kTile - 1) / kTile : 1;
}
__host__ __device__ inline int64_t quotient(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// result = reduce over the 32 lanes of a warp, in a fixed order, in every lane.
template <typename A>
__device__ inline A warp_maximum(A value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}
template <typename A>
__device__ inline A warp_sum(A value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// rows[n] of every row of scores. One warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) vlad_rows_kernel(const T* assignment,  // (rows, K)
                                                             int64_t rows, int64_t clusters,
                                                             Row<Sum<T>>* result) {  // (rows)
  using A = Sum<T>;
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (n >= rows) return;  // the same for all lanes of a warp
  const T* row = assignment + n * clusters;
  A largest = static_cast<A>(-INFINITY);
  for (int64_t k = lane; k < clusters; k += kWarp) {
    const A score = widen(row[k]);
    largest = score > largest ? score : largest;
  }
  largest = warp_maximum(largest);
  A total = 0;
  for (int64_t k = lane; k < clusters; k += kWarp) total += exponential(widen(row[k]) - largest);
  total = warp_sum(total);
  if (lane == 0) result[n] = {largest, 1 / total};
}

// softmax_k(assignment[n,:]) from what vlad_rows_kernel left.
template <typename T>
__device__ inline Sum<T> probability(const T* assignment, const Row<Sum<T>>& row, int64_t index) {
  return exponential(widen(assignment[index]) - row.largest) * row.scale;
}

// d[f,k], the gradient of v.
template <typename T>
__device__ inline Sum<T> column_gradient(const VladSaved<T, Sum<T>>& saved, int64_t index,
                                         Sum<T> scale, Sum<T> projection) {
  return scale * (widen(saved.grad[index]) - widen(saved.output[index]) * projection);
}

// The 4 x 4 sums of a thread: rows ty + 16 i and columns tx + 16 j of the block's tile.
template <typename A>
struct Tile {
  A left[kDepth][kTile + 1];   // [term][row]; one more, so that a column lies in different banks
  A right[kDepth][kTile + 1];  // [term][column]
};

// The 16 terms are added up first, so that a long sum has the rounding error of its blocks.
template <typename A>
__device__ inline void multiply(const Tile<A>& tile, int ty, int tx,
                                A (&sums)[kPerThread][kPerThread]) {
  A partial[kPerThread][kPerThread] = {};
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    A left[kPerThread], right[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) left[i] = tile.left[d][ty + kLanes * i];
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) right[j] = tile.right[d][tx + kLanes * j];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) partial[i][j] += left[i] * right[j];
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) sums[i][j] += partial[i][j];
  }
}

// Sums over the 16 threads of each ty, in the order of tx; every thread of the block takes part.
// buffer holds 16 x 16 values that are free for use before and after.
template <typename A>
__device__ inline A sum_over_tx(A value, A* buffer, int ty, int tx) {
  __syncthreads();
  buffer[ty * kLanes + tx] = value;
  __syncthreads();
  A total = 0;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) total += buffer[ty * kLanes + i];
  __syncthreads();
  return total;
}

// v[f,k] = sum_n w[n,k] features[n,f] - centers[f,k] mass[k], its square sums and the mass.
// One block per (b, 64 of F, 64 of K), in this order of significance; terms are rows n.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    vlad_aggregate_kernel(VladShape shape, VladInput<T> in, ForwardWorkspace<Sum<T>> work,
                          Sum<T>* mass_out) {  // (B, K)
  using A = Sum<T>;
  __shared__ Tile<A> tile;
  __shared__ A square_sums[kLanes][kTile];
  const int64_t K = shape.clusters, F = shape.width, N = shape.rows;
  const int64_t k_tiles = tiles(K), f_tiles = tiles(F);
  const int64_t k0 = blockIdx.x % k_tiles * kTile;
  const int64_t f_tile = blockIdx.x / k_tiles % f_tiles, f0 = f_tile * kTile;
  const int64_t b = blockIdx.x / (k_tiles * f_tiles);
  const int tx = threadIdx.x % kLanes, ty = threadIdx.x / kLanes;
  A sums[kPerThread][kPerThread] = {};
  A mass[kPerThread] = {};  // of the thread's columns; all 16 ty compute the same
  for (int64_t n0 = 0; n0 < N; n0 += kDepth) {
    for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
      const int64_t n = n0 + i / kTile, row = b * N + n;
      const int64_t f = f0 + i % kTile, k = k0 + i % kTile;
      A x = 0, w = 0;
      if (n < N && f < F) x = widen(in.features[row * F + f]);
      if (n < N && k < K) {
        w = widen(in.attention[row]) * probability(in.assignment, work.rows[row], row * K + k);
      }
      tile.left[i / kTile][i % kTile] = x;
      tile.right[i / kTile][i % kTile] = w;
    }
    __syncthreads();
    multiply(tile, ty, tx, sums);
    A partial[kPerThread] = {};
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) partial[j] += tile.right[d][tx + kLanes * j];
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) mass[j] += partial[j];
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int64_t k = k0 + tx + kLanes * j;
    A square_sum = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t f = f0 + ty + kLanes * i;
      if (f < F && k < K) {
        const A v = sums[i][j] - widen(in.centers[f * K + k]) * mass[j];
        work.vlad[(b * F + f) * K + k] = v;
        square_sum += v * v;
      }
    }
    square_sums[ty][tx + kLanes * j] = square_sum;
    if (k < K && f_tile == 0 && ty == 0) mass_out[b * K + k] = mass[j];
  }
  __syncthreads();
  const int64_t k = k0 + threadIdx.x;
  if (threadIdx.x < kTile && k < K) {
    A total = 0;
    for (int i = 0; i < kLanes; ++i) total += square_sums[i][threadIdx.x];
    work.square_sums[(b * f_tiles + f_tile) * K + k] = total;
  }
}

// output = v / sqrt(max(sum_f v^2, eps)). One block per (b, 32 of K): a thread for a column and
// every eighth f.
template <typename T>
__global__ void __launch_bounds__(kColumns* kSlices)
    vlad_normalize_kernel(VladShape shape, Sum<T> eps, ForwardWorkspace<Sum<T>> work,
                          VladOutput<T, Sum<T>> out) {
  using A = Sum<T>;
  const int64_t K = shape.clusters, F = shape.width;
  const int64_t blocks = quotient(K, kColumns), f_tiles = tiles(F);
  const int64_t b = blockIdx.x / blocks;
  const int64_t k = blockIdx.x % blocks * kColumns + threadIdx.x % kColumns;
  const int slice = threadIdx.x / kColumns;
  if (k >= K) return;
  A norm = 0;
  for (int64_t i = 0; i < f_tiles; ++i) norm += work.square_sums[(b * f_tiles + i) * K + k];
  if (slice == 0) out.square_norm[b * K + k] = norm;
  const A scale = inverse_root(norm < eps ? eps : norm);
  for (int64_t f = slice; f < F; f += kSlices) {
    const int64_t index = (b * F + f) * K + k;
    narrow(work.vlad[index] * scale, out.output[index]);
  }
}

// columns[b] = scale, projection and s. One block per (b, 32 of K): a thread for a column and every
// eighth f, added in the order of the slices.
template <typename T>
__global__ void __launch_bounds__(kColumns* kSlices)
    vlad_columns_kernel(VladShape shape, VladInput<T> in, VladSaved<T, Sum<T>> saved, Sum<T> eps,
                        Sum<T>* columns) {  // (B, 3, K)
  using A = Sum<T>;
  __shared__ A partial[kSlices][kColumns];
  const int64_t K = shape.clusters, F = shape.width;
  const int64_t blocks = quotient(K, kColumns);
  const int64_t b = blockIdx.x / blocks;
  const int column = threadIdx.x % kColumns, slice = threadIdx.x / kColumns;
  const int64_t k = blockIdx.x % blocks * kColumns + column;
  const bool inside = k < K;  // no early return: all threads meet at the barriers
  A sum = 0;
  for (int64_t f = slice; inside && f < F; f += kSlices) {
    const int64_t index = (b * F + f) * K + k;
    sum += widen(saved.grad[index]) * widen(saved.output[index]);
  }
  partial[slice][column] = sum;
  __syncthreads();
  A projection = 0;
  for (int i = 0; i < kSlices; ++i) projection += partial[i][column];
  const A norm = inside ? saved.square_norm[b * K + k] : eps;
  const bool clamped = norm < eps;
  const A scale = inverse_root(clamped ? eps : norm);
  if (clamped) projection = 0;
  A shift = 0;
  for (int64_t f = slice; inside && f < F; f += kSlices) {
    const A d = column_gradient(saved, (b * F + f) * K + k, scale, projection);
    shift -= d * widen(in.centers[f * K + k]);
  }
  __syncthreads();
  partial[slice][column] = shift;
  __syncthreads();
  if (slice != 0 || !inside) return;
  shift = 0;
  for (int i = 0; i < kSlices; ++i) shift += partial[i][column];
  columns[(b * 3 + 0) * K + k] = scale;
  columns[(b * 3 + 1) * K + k] = projection;
  columns[(b * 3 + 2) * K + k] = shift;
}

// With u[n,f] = sum_k p[n,k] d[f,k]:
//   d_features[n,f] = attention[n] u[n,f]
//   d_attention[n] = sum_f features[n,f] u[n,f] + sum_k p[n,k] s[k]
// (the sum over k of p g of pyseg/vlad.h, in the other order). One block per (b, 64 rows), which
// walks F by tiles of 64; terms are clusters k.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    vlad_backward_features_kernel(VladShape shape, VladInput<T> in, VladSaved<T, Sum<T>> saved,
                                  BackwardWorkspace<Sum<T>> work, VladGradient<T> out) {
  using A = Sum<T>;
  __shared__ Tile<A> tile;
  __shared__ A buffer[kLanes * kLanes];
  const int64_t K = shape.clusters, F = shape.width, N = shape.rows;
  const int64_t n_tiles = tiles(N);
  const int64_t b = blockIdx.x / n_tiles, n0 = blockIdx.x % n_tiles * kTile;
  const A* columns = work.columns + b * 3 * K;
  const int tx = threadIdx.x % kLanes, ty = threadIdx.x / kLanes;
  A attention[kPerThread] = {};  // gradient of the thread's rows, its part
  for (int64_t f0 = 0; f0 < F; f0 += kTile) {
    A sums[kPerThread][kPerThread] = {};
    for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
      for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
        // Neighbouring threads take neighbouring k, the fastest index of both arrays.
        const int d = i % kDepth, j = i / kDepth;
        const int64_t k = k0 + d, n = n0 + j, f = f0 + j;
        A p = 0, g = 0;
        if (k < K && n < N) {
          p = probability(in.assignment, work.rows[b * N + n], (b * N + n) * K + k);
        }
        if (k < K && f < F) {
          g = column_gradient(saved, (b * F + f) * K + k, columns[k], columns[K + k]);
        }
        tile.left[d][j] = p;
        tile.right[d][j] = g;
      }
      __syncthreads();
      multiply(tile, ty, tx, sums);
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t n = n0 + ty + kLanes * i;
      if (n >= N) continue;
      const A weight = widen(in.attention[b * N + n]);
      A part = 0;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int64_t f = f0 + tx + kLanes * j;
        if (f >= F) continue;
        const int64_t index = (b * N + n) * F + f;
        part += widen(in.features[index]) * sums[i][j];
        if (out.features != nullptr) narrow(weight * sums[i][j], out.features[index]);
      }
      attention[i] += part;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t n = n0 + ty + kLanes * i, row = b * N + n;
    if (n < N) {
      A part = 0;
      for (int64_t k = tx; k < K; k += kLanes) {
        part += probability(in.assignment, work.rows[row], row * K + k) * columns[2 * K + k];
      }
      attention[i] += part;
    }
    const A total = sum_over_tx(attention[i], buffer, ty, tx);
    if (n < N && tx == 0) {
      work.attention[row] = total;
      narrow_saturated<T>(total, out.attention[row]);
    }
  }
}

// d_assignment[n,k] = attention[n] p[n,k] (sum_f features[n,f] d[f,k] + s[k] - d_attention[n]).
// One block per (b, 64 rows, 64 of K), in this order of significance; terms are f.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    vlad_backward_assignment_kernel(VladShape shape, VladInput<T> in, VladSaved<T, Sum<T>> saved,
                                    BackwardWorkspace<Sum<T>> work, VladGradient<T> out) {
  using A = Sum<T>;
  __shared__ Tile<A> tile;
  const int64_t K = shape.clusters, F = shape.width, N = shape.rows;
  const int64_t k_tiles = tiles(K), n_tiles = tiles(N);
  const int64_t k0 = blockIdx.x % k_tiles * kTile;
  const int64_t n0 = blockIdx.x / k_tiles % n_tiles * kTile;
  const int64_t b = blockIdx.x / (k_tiles * n_tiles);
  const A* columns = work.columns + b * 3 * K;
  const int tx = threadIdx.x % kLanes, ty = threadIdx.x / kLanes;
  A sums[kPerThread][kPerThread] = {};
  for (int64_t f0 = 0; f0 < F; f0 += kDepth) {
    for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
      // Neighbouring threads take neighbouring f of features, and neighbouring k of d.
      const int64_t n = n0 + i / kDepth, f = f0 + i % kDepth;
      A x = 0, g = 0;
      if (n < N && f < F) x = widen(in.features[(b * N + n) * F + f]);
      const int64_t k = k0 + i % kTile, f_right = f0 + i / kTile;
      if (k < K && f_right < F) {
        g = column_gradient(saved, (b * F + f_right) * K + k, columns[k], columns[K + k]);
      }
      tile.left[i % kDepth][i / kDepth] = x;
      tile.right[i / kTile][i % kTile] = g;
    }
    __syncthreads();
    multiply(tile, ty, tx, sums);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t n = n0 + ty + kLanes * i, row = b * N + n;
    if (n >= N) continue;
    const A weight = widen(in.attention[row]), mean = work.attention[row];
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int64_t k = k0 + tx + kLanes * j;
      if (k >= K) continue;
      const A p = probability(in.assignment, work.rows[row], row * K + k);
      narrow(weight * p * (sums[i][j] + columns[2 * K + k] - mean), out.assignment[row * K + k]);
    }
  }
}

// d_centers[f,k] = -sum_b mass[b,k] d[b,f,k], in the order of b. One thread per (f, k).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    vlad_backward_centers_kernel(VladShape shape, VladSaved<T, Sum<T>> saved,
                                 const Sum<T>* columns,  // (B, 3, K)
                                 T* centers) {           // (F, K)
  using A = Sum<T>;
  const int64_t K = shape.clusters, F = shape.width;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= F * K) return;
  const int64_t k = i % K;
  A sum = 0;
  for (int64_t b0 = 0; b0 < shape.batch; b0 += kDepth) {
    const int64_t b1 = b0 + kDepth < shape.batch ? b0 + kDepth : shape.batch;
    A partial = 0;
    for (int64_t b = b0; b < b1; ++b) {
      const A* column = columns + b * 3 * K + k;
      partial -=
          saved.mass[b * K + k] * column_gradient(saved, b * F * K + i, column[0], column[K]);
    }
    sum += partial;
  }
  narrow(sum, centers[i]);
}

}  // namespace vlad_cuda

// Forward. K is at least 1, every other size may be 0; no grid may exceed 2^31 - 1 blocks.
template <typename T>
cudaError_t launch_vlad_forward(const VladShape& shape, const VladInput<T>& in, double eps,
                                const VladOutput<T, vlad_cuda::Sum<T>>& out,
                                const vlad_cuda::ForwardWorkspace<vlad_cuda::Sum<T>>& work,
                                cudaStream_t stream) {
  using namespace vlad_cuda;
  const auto [B, N, F, K] = shape;
  if (B == 0) return cudaSuccess;
  if (N > 0) {
    const auto blocks = static_cast<unsigned>(quotient(B * N, kThreads / kWarp));
    vlad_rows_kernel<T><<<blocks, kThreads, 0, stream>>>(in.assignment, B * N, K, work.rows);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  const auto blocks = static_cast<unsigned>(B * tiles(F) * tiles(K));
  vlad_aggregate_kernel<T><<<blocks, kThreads, 0, stream>>>(shape, in, work, out.mass);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const auto column_blocks = static_cast<unsigned>(B * quotient(K, kColumns));
  vlad_normalize_kernel<T><<<column_blocks, kColumns * kSlices, 0, stream>>>(
      shape, static_cast<Sum<T>>(eps), work, out);
  return cudaGetLastError();
}

// Gradients of features (unless null), assignment, attention and centers.
template <typename T>
cudaError_t launch_vlad_backward(const VladShape& shape, const VladInput<T>& in,
                                 const VladSaved<T, vlad_cuda::Sum<T>>& saved, double eps,
                                 const VladGradient<T>& out, T* centers,
                                 const vlad_cuda::BackwardWorkspace<vlad_cuda::Sum<T>>& work,
                                 cudaStream_t stream) {
  using namespace vlad_cuda;
  const auto [B, N, F, K] = shape;
  if (B > 0) {
    const auto blocks = static_cast<unsigned>(B * quotient(K, kColumns));
    vlad_columns_kernel<T><<<blocks, kColumns * kSlices, 0, stream>>>(
        shape, in, saved, static_cast<Sum<T>>(eps), work.columns);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  if (B > 0 && N > 0) {
    const auto row_blocks = static_cast<unsigned>(quotient(B * N, kThreads / kWarp));
    vlad_rows_kernel<T><<<row_blocks, kThreads, 0, stream>>>(in.assignment, B * N, K, work.rows);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    const auto feature_blocks = static_cast<unsigned>(B * tiles(N));
    vlad_backward_features_kernel<T>
        <<<feature_blocks, kThreads, 0, stream>>>(shape, in, saved, work, out);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    const auto blocks = static_cast<unsigned>(B * tiles(N) * tiles(K));
    vlad_backward_assignment_kernel<T>
        <<<blocks, kThreads, 0, stream>>>(shape, in, saved, work, out);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  if (F > 0) {
    const auto blocks = static_cast<unsigned>(quotient(F * K, kThreads));
    vlad_backward_centers_kernel<T>
        <<<blocks, kThreads, 0, stream>>>(shape, saved, work.columns, centers);
  }
  return cudaGetLastError();
}

}  // namespace pyseg
