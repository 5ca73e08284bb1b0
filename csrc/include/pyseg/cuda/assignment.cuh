// The softmax of rows of any length on a GPU, and the sums over columns that the batch
// normalisation of an assignment needs, forward (moments) and backward; the equations are in
// pyseg/vlad_shape.h.
//
// If the statistics depend on the assignment itself, its gradient first needs two sums over the
// batch. A kernel that writes e in place of the gradient leaves the rest to launch_norm_backward:
// columns are summed in two steps of fixed order, and a last pass turns e into the gradient.
#pragma once

#include <type_traits>

#include "pyseg/cuda/common.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

constexpr int kRowThreads = 256;       // of the kernels over rows
constexpr int kCached = 8;             // scores that a lane keeps: rows of up to 256 are read once
constexpr float kLog2E = 1.44269504f;  // log2(e): exp(y) = 2^(y log2(e))

// Kernels over the columns of a (B * T, G * K) matrix: a thread takes the columns of one 16-byte
// access (or one column, where rows are not aligned), a warp 32 such, and the 8 warps of a block
// every eighth row of 64.
constexpr int kSlabRows = 64;
constexpr int kSlabWarps = 8;
constexpr int kRowsPerThread = kSlabRows / kSlabWarps;
constexpr int kFinishColumns = 32;  // a block that adds up the slabs' sums: 32 columns,
constexpr int kFinishSlices = 32;   // 32 threads each

template <typename T>
constexpr int kVector = static_cast<int>(sizeof(uint4) / sizeof(T));

// y[n,k] of a row of group g.
template <typename A>
__device__ inline A normalized(A score, const VladNorm<A>& norm, int64_t groups, int64_t clusters,
                               int64_t g, int64_t k) {
  if (norm.values == nullptr) return score;
  const int64_t plane = groups * clusters;
  const A* values = norm.values + g * clusters + k;
  return (score - values[0]) * (values[plane] * values[2 * plane]) + values[3 * plane];
}

// exp(y - largest) / sum is the softmax of a row.
template <typename A>
struct Row {
  A largest;
  A scale;  // 1 / sum_k exp(y[n,k] - largest)
};

// The scores of a row, spread over the lanes of a warp: y[lane + 32 i], of which each lane keeps
// the first kCached, and later their exponentials. Scores beyond the last are -inf, so that their
// softmax is 0.
template <typename T>
class RowScores {
 public:
  using A = Sum<T>;

  // `row` counts over all videos; rows of a video are a multiple of G, so its group is row % G.
  __device__ RowScores(const VladShape& shape, const T* assignment, const VladNorm<A>& norm,
                       int64_t row, int lane)
      : shape_(shape), scores_(assignment + row * shape.clusters), norm_(norm), lane_(lane) {
    group_ = norm.values == nullptr ? 0 : row % shape.groups;
#pragma unroll
    for (int i = 0; i < kCached; ++i) cached_[i] = read(lane + kWarp * i);
    A largest = cached_[0];
#pragma unroll
    for (int i = 1; i < kCached; ++i) largest = maximum(cached_[i], largest);
#pragma unroll 1
    for (int64_t k = lane + kWarp * kCached; k < shape.clusters; k += kWarp) {
      largest = maximum(read(k), largest);
    }
    softmax_.largest = warp_maximum(largest);
    A total = 0;
#pragma unroll
    for (int i = 0; i < kCached; ++i) {
      total += cached_[i] = exponential(cached_[i] - softmax_.largest);
    }
#pragma unroll 1
    for (int64_t k = lane + kWarp * kCached; k < shape.clusters; k += kWarp) {
      total += exponential(read(k) - softmax_.largest);
    }
    softmax_.scale = 1 / warp_sum(total);
  }

  __device__ Row<A> softmax() const { return softmax_; }

  // Calls function(k, p[k]) for the lane's clusters.
  template <typename Function>
  __device__ void for_each(const Function& function) const {
#pragma unroll
    for (int i = 0; i < kCached; ++i) {
      const int64_t k = lane_ + kWarp * i;
      if (k < shape_.clusters) function(k, cached_[i] * softmax_.scale);
    }
#pragma unroll 1
    for (int64_t k = lane_ + kWarp * kCached; k < shape_.clusters; k += kWarp) {
      function(k, exponential(read(k) - softmax_.largest) * softmax_.scale);
    }
  }

 private:
  __device__ A read(int64_t k) const {
    if (k >= shape_.clusters) return -INFINITY;
    return normalized(widen(scores_[k]), norm_, shape_.groups, shape_.clusters, group_, k);
  }

  const VladShape& shape_;
  const T* scores_;
  const VladNorm<A>& norm_;
  int lane_;
  int64_t group_;
  A cached_[kCached];
  Row<A> softmax_;
};

// The columns that a thread of a column kernel owns, and the first of its rows.
template <int kWidth>
struct ColumnThread {
  __device__ explicit ColumnThread(int64_t columns)
      : lane(threadIdx.x % kWarp), warp(threadIdx.x / kWarp) {
    const int64_t blocks = quotient(columns, kWarp * kWidth);
    slab = blockIdx.x / blocks;
    column = (blockIdx.x % blocks * kWarp + lane) * kWidth;
    count = columns - column;
  }
  int lane, warp;
  int64_t slab, column;
  int64_t count;  // existing columns from `column` on; may be negative
};

// partial[slab] = the sums of e (z - mean) and of e over the slab's rows, for every column.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kWarp* kSlabWarps)
    norm_sums_kernel(int64_t rows, int64_t columns, const T* e, const T* assignment,
                     const Sum<T>* mean,  // (C)
                     Sum<T>* partial) {   // (slabs, 2, C)
  using A = Sum<T>;
  __shared__ A sums[2][kSlabWarps][kWarp * kWidth];
  const ColumnThread<kWidth> thread(columns);
  A by_score[kWidth] = {}, by_one[kWidth] = {};
  if (thread.count > 0) {
    A means[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) means[j] = j < thread.count ? mean[thread.column + j] : A{0};
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int64_t row = thread.slab * kSlabRows + i * kSlabWarps + thread.warp;
      if (row >= rows) continue;
      const int64_t index = row * columns + thread.column;
      A gradients[kWidth], scores[kWidth];
      load_values(e + index, thread.count, kWidth > 1, gradients);
      load_values(assignment + index, thread.count, kWidth > 1, scores);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        by_score[j] += gradients[j] * (scores[j] - means[j]);
        by_one[j] += gradients[j];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    sums[0][thread.warp][thread.lane * kWidth + j] = by_score[j];
    sums[1][thread.warp][thread.lane * kWidth + j] = by_one[j];
  }
  __syncthreads();
  const int64_t first = thread.column - thread.lane * kWidth;
  for (int i = threadIdx.x; i < 2 * kWarp * kWidth; i += kWarp * kSlabWarps) {
    const int which = i / (kWarp * kWidth), j = i % (kWarp * kWidth);
    if (first + j >= columns) continue;
    A total = 0;
    for (int warp = 0; warp < kSlabWarps; ++warp) total += sums[which][warp][j];
    partial[(thread.slab * 2 + which) * columns + first + j] = total;
  }
}

// norm_sums[0] = rstd times the first sum over all parts, norm_sums[1] = the second. One block per
// (32 columns, sum); a thread takes every 32nd part.
template <typename A>
__global__ void __launch_bounds__(kFinishColumns* kFinishSlices)
    norm_sums_finish_kernel(int64_t parts, int64_t columns,
                            const A* partial,  // (parts, 2, C)
                            const A* rstd,     // (C)
                            A* norm_sums) {    // (2, C)
  __shared__ A sums[kFinishSlices][kFinishColumns];
  const int64_t blocks = quotient(columns, kFinishColumns);
  const int64_t which = blockIdx.x / blocks;
  const int x = threadIdx.x % kFinishColumns, y = threadIdx.x / kFinishColumns;
  const int64_t column = blockIdx.x % blocks * kFinishColumns + x;
  A sum = 0;
  if (column < columns) {
    for (int64_t i = y; i < parts; i += kFinishSlices) {
      sum += partial[(i * 2 + which) * columns + column];
    }
  }
  sums[y][x] = sum;
  __syncthreads();
  if (y != 0 || column >= columns) return;
  sum = 0;
  for (int i = 0; i < kFinishSlices; ++i) sum += sums[i][x];
  norm_sums[which * columns + column] = which == 0 ? sum * rstd[column] : sum;
}

// Turns e into the gradient of the assignment, in place.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kWarp* kSlabWarps)
    norm_gradient_kernel(int64_t rows, int64_t columns, const T* assignment, VladNorm<Sum<T>> norm,
                         const Sum<T>* norm_sums,  // (2, C)
                         T* gradient) {            // (rows, C)
  using A = Sum<T>;
  const ColumnThread<kWidth> thread(columns);
  if (thread.count <= 0) return;
  A mean[kWidth], rstd[kWidth], factor[kWidth], by_normal[kWidth], by_one[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const int64_t column = thread.column + (j < thread.count ? j : 0);
    mean[j] = norm.values[column];
    rstd[j] = norm.values[columns + column];
    factor[j] = rstd[j] * norm.values[2 * columns + column];
    by_normal[j] = norm_sums[column];
    by_one[j] = norm_sums[columns + column];
  }
#pragma unroll 2
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int64_t row = thread.slab * kSlabRows + i * kSlabWarps + thread.warp;
    if (row >= rows) return;
    const A weight = norm.row_weights == nullptr ? A{0} : norm.row_weights[row];
    const int64_t index = row * columns + thread.column;
    A values[kWidth], scores[kWidth] = {};
    load_values(gradient + index, thread.count, kWidth > 1, values);
    // A frame of weight 0 may hold anything.
    if (weight != 0) load_values(assignment + index, thread.count, kWidth > 1, scores);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const A through = weight != 0
                            ? weight * (by_one[j] + (scores[j] - mean[j]) * rstd[j] * by_normal[j])
                            : A{0};
      values[j] = factor[j] * (values[j] - through);
    }
    store_values(values, thread.count, kWidth > 1, gradient + index);
  }
}

// Weight, weighted mean and weighted sum of squared deviations of some values of a column.
template <typename A>
struct Moments {
  A weight, mean, squares;
};

// Merges the moments of two sets of values (Chan, Golub and LeVeque 1979).
template <typename A>
__device__ inline Moments<A> combine(const Moments<A>& a, const Moments<A>& b) {
  const A weight = a.weight + b.weight;
  if (weight == 0) return a;
  const A step = b.mean - a.mean, share = b.weight / weight;
  return {weight, a.mean + step * share, a.squares + b.squares + step * step * a.weight * share};
}

// partial[slab] = mean and sum of squared deviations of every column over the slab's rows. A thread
// holds all its rows at once, so it can subtract their own mean.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kWarp* kSlabWarps)
    moments_kernel(int64_t rows, int64_t columns, const T* x,
                   const Sum<T>* row_weights,  // (rows), or null for ones
                   Sum<T>* weights,            // (slabs)
                   Sum<T>* partial) {          // (slabs, 2, C)
  using A = Sum<T>;
  __shared__ A shared[2][kSlabWarps][kWarp * kWidth];
  __shared__ A warp_weights[kSlabWarps];
  const ColumnThread<kWidth> thread(columns);
  A row_weight[kRowsPerThread], values[kRowsPerThread][kWidth], weight = 0;
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int64_t row = thread.slab * kSlabRows + i * kSlabWarps + thread.warp;
    row_weight[i] = row >= rows ? A{0} : row_weights == nullptr ? A{1} : row_weights[row];
    weight += row_weight[i];
    // A row of weight 0 may hold anything.
    const int64_t count = row_weight[i] == 0 ? 0 : thread.count;
    load_values(x + row * columns + thread.column, count, kWidth > 1 && count > 0, values[i]);
  }
  const A scale = weight != 0 ? 1 / weight : A{0};
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    A mean = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) mean += row_weight[i] * values[i][j];
    mean *= scale;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const A deviation = values[i][j] - mean;
      squares += row_weight[i] * deviation * deviation;
    }
    shared[0][thread.warp][thread.lane * kWidth + j] = mean;
    shared[1][thread.warp][thread.lane * kWidth + j] = squares;
  }
  if (thread.lane == 0) warp_weights[thread.warp] = weight;
  __syncthreads();
  const int64_t first = thread.column - thread.lane * kWidth;
  for (int j = threadIdx.x; j < kWarp * kWidth; j += kWarp * kSlabWarps) {
    A total = 0, mean = 0, squares = 0;
#pragma unroll
    for (int warp = 0; warp < kSlabWarps; ++warp) {
      total += warp_weights[warp];
      mean += warp_weights[warp] * shared[0][warp][j];
    }
    if (total != 0) mean /= total;
#pragma unroll
    for (int warp = 0; warp < kSlabWarps; ++warp) {
      const A step = shared[0][warp][j] - mean;
      squares += shared[1][warp][j] + warp_weights[warp] * step * step;
    }
    if (first + j < columns) {
      partial[thread.slab * 2 * columns + first + j] = mean;
      partial[(thread.slab * 2 + 1) * columns + first + j] = squares;
    }
    if (j == 0 && first == 0) weights[thread.slab] = total;
  }
}

// One block per 32 columns; a thread takes every 32nd slab, then the threads reduce by halves.
template <typename A>
__global__ void __launch_bounds__(kFinishColumns* kFinishSlices)
    moments_finish_kernel(int64_t slabs, int64_t columns, bool weighted,
                          const A* weights,  // (slabs)
                          const A* partial,  // (slabs, 2, C)
                          A* moments) {      // (2, C)
  __shared__ Moments<A> shared[kFinishSlices][kFinishColumns];
  const int x = threadIdx.x % kFinishColumns, y = threadIdx.x / kFinishColumns;
  const int64_t column = int64_t{blockIdx.x} * kFinishColumns + x;
  Moments<A> total{};
  if (column < columns) {
    for (int64_t i = y; i < slabs; i += kFinishSlices) {
      total = combine(total, {weights[i], partial[i * 2 * columns + column],
                              partial[(i * 2 + 1) * columns + column]});
    }
  }
  // Writes to y < 2 half do not conflict with the previous step's reads of y >= 2 half.
  for (int half = kFinishSlices / 2; half > 0; half /= 2) {
    if (y < 2 * half) shared[y][x] = total;
    __syncthreads();
    if (y < half) total = combine(total, shared[y + half][x]);
  }
  if (y != 0 || column >= columns) return;
  if (weighted) {
    // The weights' sum may be 1 less a rounding, or 0: mean is sum w x by its definition.
    const A mean = total.weight * total.mean, step = total.mean - mean;
    moments[column] = mean;
    moments[columns + column] = total.squares + total.weight * step * step;
  } else {
    moments[column] = total.mean;
    moments[columns + column] = total.weight == 0 ? A{0} : total.squares / total.weight;
  }
}

// The (B * T, G * K) matrix of the column kernels.
inline int64_t matrix_rows(const VladShape& shape) {
  return shape.groups > 0 ? shape.batch * (shape.rows / shape.groups) : 0;
}
inline int64_t matrix_columns(const VladShape& shape) { return shape.groups * shape.clusters; }
inline int64_t slabs(int64_t rows) { return quotient(rows, kSlabRows); }

// Launches the kernel make(width), where width is the number of columns that a thread can take of
// arrays (rows, columns).
template <typename T, typename Make, typename... Arguments>
cudaError_t launch_columns(bool aligned, const Make& make, int64_t rows, int64_t columns,
                           cudaStream_t stream, const Arguments&... arguments) {
  const auto run = [&](auto width) {
    const int64_t blocks = slabs(rows) * quotient(columns, kWarp * width());
    return launch(make(width), blocks, kWarp * kSlabWarps, 0, stream, rows, columns, arguments...);
  };
  return aligned ? run(std::integral_constant<int, kVector<T>>{})
                 : run(std::integral_constant<int, 1>{});
}

// Sums of every slab's rows, for launch_norm_sums_finish; `partial` holds slabs(B * T) (2, G, K).
template <typename T>
cudaError_t launch_norm_sums(const VladShape& shape, const T* e, const T* assignment,
                             const VladNorm<Sum<T>>& norm, Sum<T>* partial, cudaStream_t stream) {
  const int64_t columns = matrix_columns(shape);
  const bool aligned = rows_aligned(assignment, columns) && rows_aligned(e, columns);
  const auto make = [](auto width) { return norm_sums_kernel<T, width()>; };
  return launch_columns<T>(aligned, make, matrix_rows(shape), columns, stream, e, assignment,
                           norm.values, partial);
}

template <typename A>
cudaError_t launch_norm_sums_finish(const VladShape& shape, const VladNorm<A>& norm, int64_t parts,
                                    const A* partial, A* norm_sums, cudaStream_t stream) {
  const int64_t columns = matrix_columns(shape);
  return launch(norm_sums_finish_kernel<A>, 2 * quotient(columns, kFinishColumns),
                kFinishColumns * kFinishSlices, 0, stream, parts, columns, partial,
                norm.values + columns, norm_sums);
}

// Turns e, in out.assignment, into the gradient, from out.norm_sums.
template <typename T>
cudaError_t launch_norm_gradient(const VladShape& shape, const T* assignment,
                                 const VladNorm<Sum<T>>& norm, const VladGradient<T, Sum<T>>& out,
                                 cudaStream_t stream) {
  const int64_t columns = matrix_columns(shape);
  const bool aligned = rows_aligned(assignment, columns) && rows_aligned(out.assignment, columns);
  const auto make = [](auto width) { return norm_gradient_kernel<T, width()>; };
  return launch_columns<T>(aligned, make, matrix_rows(shape), columns, stream, assignment, norm,
                           out.norm_sums, out.assignment);
}

// All three steps, from e in out.assignment.
template <typename T>
cudaError_t launch_norm_backward(const VladShape& shape, const T* assignment,
                                 const VladNorm<Sum<T>>& norm, const VladGradient<T, Sum<T>>& out,
                                 Sum<T>* partial, cudaStream_t stream) {
  cudaError_t error = launch_norm_sums<T>(shape, out.assignment, assignment, norm, partial, stream);
  if (error != cudaSuccess) return error;
  error = launch_norm_sums_finish(shape, norm, slabs(matrix_rows(shape)), partial, out.norm_sums,
                                  stream);
  if (error != cudaSuccess) return error;
  return launch_norm_gradient<T>(shape, assignment, norm, out, stream);
}

inline int64_t norm_sums_size(const VladShape& shape) {
  return slabs(matrix_rows(shape)) * 2 * matrix_columns(shape);
}

}  // namespace gpu

// Bytes of workspace of launch_moments.
template <typename T>
int64_t moments_workspace(int64_t rows, int64_t columns) {
  return gpu::slabs(rows) * (2 * columns + 1) * sizeof(gpu::Sum<T>);
}

// moments (2, C): mean and biased variance of the columns of x (R, C), rows weighted by row_weights
// (R), or by 1 / R where that is null.
template <typename T>
cudaError_t launch_moments(int64_t rows, int64_t columns, const T* x,
                           const gpu::Sum<T>* row_weights, gpu::Sum<T>* moments, void* workspace,
                           cudaStream_t stream) {
  using A = gpu::Sum<T>;
  const int64_t slabs = gpu::slabs(rows);
  A* const partial = static_cast<A*>(workspace);
  A* const weights = partial + slabs * 2 * columns;
  const auto make = [](auto width) { return gpu::moments_kernel<T, width()>; };
  const cudaError_t error = gpu::launch_columns<T>(
      gpu::rows_aligned(x, columns), make, rows, columns, stream, x, row_weights, weights, partial);
  if (error != cudaSuccess) return error;
  return gpu::launch(gpu::moments_finish_kernel<A>, gpu::quotient(columns, gpu::kFinishColumns),
                     gpu::kFinishColumns * gpu::kFinishSlices, 0, stream, slabs, columns,
                     row_weights != nullptr, weights, partial, moments);
}

}  // namespace pyseg
