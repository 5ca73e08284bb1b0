// The VLAD aggregation by plain multiply-adds: for float and double, whose precision the tensor
// cores lack, and for every size that does not fit the kernels of vlad_mma.cuh.
//
// The softmax needs a whole row of K scores, the products only tiles of them. So a first kernel
// writes two numbers per row, from which every tile recomputes its weights: nothing of size
// (B, T, G, K) is written but the gradient of the assignment. The normalisation of v and the
// gradient of the centers serve vlad_mma.cuh too.
#pragma once

#include "pyseg/cuda/assignment.cuh"
#include "pyseg/cuda/common.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

// The workspace that kernels share. The rows of a video are summed in S slices; this file has one.
template <typename A>
struct ForwardWorkspace {
  Row<A>* rows;  // (B, T * G); this file only
  A* vlad;       // (B, S, F, K): sum_n w[n,k] features[n,f] over a slice
  A* masses;     // (B, S, K): sum_n w[n,k] over a slice
};
template <typename A>
struct BackwardWorkspace {
  Row<A>* rows;  // (B, T * G); this file only
  A* columns;    // (B, 3, K): scale, projection (see vlad.cuh) and s[k] = -sum_f d[f,k] c[f,k]
  A* attention;  // (B, T * G): the gradient of attention before rounding; this file only
  A* norm_sums;  // (parts, 2, G, K)
};

constexpr int kTile = 64;      // a block of kThreads threads computes 64 x 64 sums,
constexpr int kDepth = 16;     // 16 terms at a time,
constexpr int kPerThread = 4;  // a thread 4 x 4 of them
constexpr int kLanes = kTile / kPerThread;
constexpr int kThreads = kLanes * kLanes;
// Blocks per multiprocessor: 128 registers per thread, 255 for double. By default ptxas allows 64
// and spills.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 1 : 2;
constexpr int kColumns = 32;  // a block of column sums: 32 columns, 8 threads each
constexpr int kSlices = 8;

// At least 1, so that empty sums are written too.
__host__ __device__ inline int64_t tiles(int64_t size) {
  return size > 0 ? (size + kTile - 1) / kTile : 1;
}

// The softmax of every row of scores. One warp per row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    vlad_rows_kernel(VladShape shape, const T* assignment, VladNorm<Sum<T>> norm,
                     Row<Sum<T>>* rows) {  // (B, T * G)
  const int lane = threadIdx.x % kWarp;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= shape.batch * shape.rows) return;  // the same for all lanes of a warp
  const RowScores<T> scores(shape, assignment, norm, row, lane);
  if (lane == 0) rows[row] = scores.softmax();
}

// softmax_k(y[n,:]) of video b from the results of vlad_rows_kernel.
template <typename T>
__device__ inline Sum<T> probability(const VladShape& shape, const VladInput<T, Sum<T>>& in,
                                     const Row<Sum<T>>* rows, int64_t b, int64_t n, int64_t k) {
  const int64_t row = b * shape.rows + n;
  const int64_t group = in.norm.values == nullptr ? 0 : group_of(n, shape.groups);
  const Sum<T> score = widen(in.assignment[row * shape.clusters + k]);
  const Sum<T> y = normalized(score, in.norm, shape.groups, shape.clusters, group, k);
  return exponential(y - rows[row].largest) * rows[row].scale;
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
  A left[kDepth][kTile + 1];   // [term][row]; + 1 avoids bank conflicts within a column
  A right[kDepth][kTile + 1];  // [term][column]
};

// Sums each block of 16 terms first, which reduces rounding errors of a long sum.
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
// buffer holds 16 x 16 values, used by this function only, which may be called again at once.
template <typename A>
__device__ inline A sum_over_tx(A value, A* buffer, int ty, int tx) {
  __syncthreads();  // the previous call has read the buffer
  buffer[ty * kLanes + tx] = value;
  __syncthreads();
  A total = 0;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) total += buffer[ty * kLanes + i];
  return total;
}

// sum_n w[n,k] features[n,f], and the mass. One block per (b, 64 of F, 64 of K), b slowest; terms
// are rows n.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    vlad_aggregate_kernel(VladShape shape, VladInput<T, Sum<T>> in, ForwardWorkspace<Sum<T>> work) {
  using A = Sum<T>;
  __shared__ Tile<A> tile;
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
      if (n < N && k < K) w = widen(in.attention[row]) * probability(shape, in, work.rows, b, n, k);
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
    if (k >= K) continue;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t f = f0 + ty + kLanes * i;
      if (f < F) work.vlad[(b * F + f) * K + k] = sums[i][j];
    }
    if (f_tile == 0 && ty == 0) work.masses[b * K + k] = mass[j];
  }
}

// v = the slices' sums - centers mass; output = v / sqrt(max(sum_f v^2, eps)). One block per
// (b, 32 of K): a thread for a column and every eighth f. v replaces the first slice.
template <typename T>
__global__ void __launch_bounds__(kColumns* kSlices)
    vlad_normalize_kernel(VladShape shape, int64_t slices, const T* centers, Sum<T> eps,
                          ForwardWorkspace<Sum<T>> work, VladOutput<T, Sum<T>> out) {
  using A = Sum<T>;
  __shared__ A partial[kSlices][kColumns];
  const int64_t K = shape.clusters, F = shape.width;
  const int64_t blocks = quotient(K, kColumns);
  const int64_t b = blockIdx.x / blocks;
  const int column = threadIdx.x % kColumns, slice = threadIdx.x / kColumns;
  const int64_t k = blockIdx.x % blocks * kColumns + column;
  const bool inside = k < K;  // no early return: all threads meet at the barrier
  A* const vlad = work.vlad + b * slices * F * K + k;
  A mass = 0, square_sum = 0;
  for (int64_t i = 0; inside && i < slices; ++i) mass += work.masses[(b * slices + i) * K + k];
#pragma unroll 4
  for (int64_t f = slice; inside && f < F; f += kSlices) {
    A v = vlad[f * K];
    for (int64_t i = 1; i < slices; ++i) v += vlad[(i * F + f) * K];
    v -= widen(centers[f * K + k]) * mass;
    vlad[f * K] = v;
    square_sum += v * v;
  }
  partial[slice][column] = square_sum;
  __syncthreads();
  if (!inside) return;
  A norm = 0;
  for (int i = 0; i < kSlices; ++i) norm += partial[i][column];
  if (slice == 0) {
    out.mass[b * K + k] = mass;
    out.square_norm[b * K + k] = norm;
  }
  const A scale = inverse_root(norm < eps ? eps : norm);
#pragma unroll 4
  for (int64_t f = slice; f < F; f += kSlices) {
    narrow(vlad[f * K] * scale, out.output[(b * F + f) * K + k]);
  }
}

// columns[b] = scale, projection and s. One block per (b, 32 of K): a thread for a column and every
// eighth f, added in the order of the slices.
template <typename T>
__global__ void __launch_bounds__(kColumns* kSlices)
    vlad_columns_kernel(VladShape shape, const T* centers, VladSaved<T, Sum<T>> saved, Sum<T> eps,
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
#pragma unroll 2
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
#pragma unroll 2
  for (int64_t f = slice; inside && f < F; f += kSlices) {
    const A d = column_gradient(saved, (b * F + f) * K + k, scale, projection);
    shift -= d * widen(centers[f * K + k]);
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
// (the sum over k of p g of vlad.cuh, in the other order). One block per (b, 64 rows), which walks
// F by tiles of 64; terms are clusters k.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    vlad_backward_features_kernel(VladShape shape, VladInput<T, Sum<T>> in,
                                  VladSaved<T, Sum<T>> saved, BackwardWorkspace<Sum<T>> work,
                                  VladGradient<T, Sum<T>> out) {
  using A = Sum<T>;
  __shared__ Tile<A> tile;
  __shared__ A buffer[kLanes * kLanes];
  const int64_t K = shape.clusters, F = shape.width, N = shape.rows;
  const int64_t n_tiles = tiles(N);
  const int64_t b = blockIdx.x / n_tiles, n0 = blockIdx.x % n_tiles * kTile;
  const A* columns = work.columns + b * 3 * K;
  const int tx = threadIdx.x % kLanes, ty = threadIdx.x / kLanes;
  A attention[kPerThread] = {};  // this thread's part of the gradient of its rows
  for (int64_t f0 = 0; f0 < F; f0 += kTile) {
    A sums[kPerThread][kPerThread] = {};
    for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
      for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
        // Adjacent threads take adjacent k, the fastest index of both arrays.
        const int d = i % kDepth, j = i / kDepth;
        const int64_t k = k0 + d, n = n0 + j, f = f0 + j;
        A p = 0, g = 0;
        if (k < K && n < N) p = probability(shape, in, work.rows, b, n, k);
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
        part += probability(shape, in, work.rows, b, n, k) * columns[2 * K + k];
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

// e[n,k] = attention[n] p[n,k] (sum_f features[n,f] d[f,k] + s[k] - d_attention[n]), in place of
// the gradient of the assignment. One block per (b, 64 rows, 64 of K), b slowest; terms are f.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    vlad_backward_assignment_kernel(VladShape shape, VladInput<T, Sum<T>> in,
                                    VladSaved<T, Sum<T>> saved, BackwardWorkspace<Sum<T>> work,
                                    VladGradient<T, Sum<T>> out) {
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
      // Adjacent threads take adjacent f of features, and adjacent k of d.
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
      const A p = probability(shape, in, work.rows, b, n, k);
      narrow(weight * p * (sums[i][j] + columns[2 * K + k] - mean), out.assignment[row * K + k]);
    }
  }
}

// d_centers[f,k] = -sum_b mass[b,k] d[b,f,k]. One block per (f, 32 of K): a thread for a column and
// every eighth video, added in the order of the slices.
template <typename T>
__global__ void __launch_bounds__(kColumns* kSlices)
    vlad_backward_centers_kernel(VladShape shape, VladSaved<T, Sum<T>> saved,
                                 const Sum<T>* columns,  // (B, 3, K)
                                 T* centers) {           // (F, K)
  using A = Sum<T>;
  __shared__ A partial[kSlices][kColumns];
  const int64_t K = shape.clusters, F = shape.width;
  const int64_t blocks = quotient(K, kColumns);
  const int64_t f = blockIdx.x / blocks;
  const int x = threadIdx.x % kColumns, slice = threadIdx.x / kColumns;
  const int64_t k = blockIdx.x % blocks * kColumns + x;
  A sum = 0;
#pragma unroll 4
  for (int64_t b = slice; k < K && b < shape.batch; b += kSlices) {
    const A* column = columns + b * 3 * K + k;
    sum -=
        saved.mass[b * K + k] * column_gradient(saved, (b * F + f) * K + k, column[0], column[K]);
  }
  partial[slice][x] = sum;
  __syncthreads();
  if (slice != 0 || k >= K) return;
  sum = 0;
  for (int i = 0; i < kSlices; ++i) sum += partial[i][x];
  narrow(sum, centers[f * K + k]);
}

template <typename T>
cudaError_t launch_vlad_normalize(const VladShape& shape, int64_t slices, const T* centers,
                                  double eps, const ForwardWorkspace<Sum<T>>& work,
                                  const VladOutput<T, Sum<T>>& out, cudaStream_t stream) {
  return launch(vlad_normalize_kernel<T>, shape.batch * quotient(shape.clusters, kColumns),
                kColumns * kSlices, 0, stream, shape, slices, centers, static_cast<Sum<T>>(eps),
                work, out);
}

template <typename T>
cudaError_t launch_vlad_centers(const VladShape& shape, const VladSaved<T, Sum<T>>& saved,
                                const Sum<T>* columns, T* centers, cudaStream_t stream) {
  return launch(vlad_backward_centers_kernel<T>, shape.width * quotient(shape.clusters, kColumns),
                kColumns * kSlices, 0, stream, shape, saved, columns, centers);
}

template <typename T>
cudaError_t launch_vlad_forward_fma(const VladShape& shape, const VladInput<T, Sum<T>>& in,
                                    double eps, const VladOutput<T, Sum<T>>& out,
                                    const ForwardWorkspace<Sum<T>>& work, cudaStream_t stream) {
  const int64_t B = shape.batch, N = shape.rows;
  cudaError_t error = launch(vlad_rows_kernel<T>, quotient(B * N, kRowThreads / kWarp), kRowThreads,
                             0, stream, shape, in.assignment, in.norm, work.rows);
  if (error != cudaSuccess) return error;
  error = launch(vlad_aggregate_kernel<T>, B * tiles(shape.width) * tiles(shape.clusters), kThreads,
                 0, stream, shape, in, work);
  if (error != cudaSuccess) return error;
  return launch_vlad_normalize<T>(shape, 1, in.centers, eps, work, out, stream);
}

// All gradients but those of the norm; with a norm, out.assignment holds e.
template <typename T>
cudaError_t launch_vlad_backward_fma(const VladShape& shape, const VladInput<T, Sum<T>>& in,
                                     const VladSaved<T, Sum<T>>& saved, double eps,
                                     const VladGradient<T, Sum<T>>& out,
                                     const BackwardWorkspace<Sum<T>>& work, cudaStream_t stream) {
  const int64_t B = shape.batch, N = shape.rows, K = shape.clusters;
  cudaError_t error =
      launch(vlad_columns_kernel<T>, B * quotient(K, kColumns), kColumns * kSlices, 0, stream,
             shape, in.centers, saved, static_cast<Sum<T>>(eps), work.columns);
  if (error != cudaSuccess) return error;
  if (N > 0) {
    error = launch(vlad_rows_kernel<T>, quotient(B * N, kRowThreads / kWarp), kRowThreads, 0,
                   stream, shape, in.assignment, in.norm, work.rows);
    if (error != cudaSuccess) return error;
    error = launch(vlad_backward_features_kernel<T>, B * tiles(N), kThreads, 0, stream, shape, in,
                   saved, work, out);
    if (error != cudaSuccess) return error;
    error = launch(vlad_backward_assignment_kernel<T>, B * tiles(N) * tiles(K), kThreads, 0, stream,
                   shape, in, saved, work, out);
    if (error != cudaSuccess) return error;
  }
  return launch_vlad_centers<T>(shape, saved, work.columns, out.centers, stream);
}

}  // namespace gpu
}  // namespace pyseg
