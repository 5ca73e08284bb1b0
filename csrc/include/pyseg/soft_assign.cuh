// The soft assignment of VLAD layers on a GPU and its gradient; the equations of its batch
// normalisation are in pyseg/vlad_shape.h.
//
//   w[n,k] = attention[n] softmax_k(y[n,:]),  p = softmax_k(y[n,:])
//   d_attention[n] = sum_k p[n,k] grad[n,k]
//   e[n,k] = attention[n] p[n,k] (grad[n,k] - d_attention[n])
//
// Half a warp or a warp takes a row of K scores and keeps it in registers, 16 bytes a load. The
// blocks stay for many rows: a thread always takes the same clusters of the same group, so that
// their normalisation and their two sums of the gradient stay in registers too, and loads a row
// before it works on the one before. Weights in the order of clusters, (B, T, K, G), are turned
// in shared memory, whole frames at a time. If the statistics depend on the assignment itself, the
// backward reads its inputs twice, once for the sums, which are taken in a fixed order, and once
// for the gradient: that moves fewer bytes than to write e between the two.
//
// Rows that do not start on 16-byte boundaries or are too long, many groups, and double take
// kernels for any shape, a warp a row.
#pragma once

#include <algorithm>
#include <type_traits>

#include "pyseg/cuda/assignment.cuh"
#include "pyseg/cuda/common.cuh"
#include "pyseg/cuda/ptx.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

// Weights, or their gradient: (B, T, G, K) in memory, or (B, T, K, G) with by_cluster.
template <typename T>
struct Weights {
  T* values;
  bool by_cluster;
};

// Where weight k of row n is: at first + k step.
struct WeightPlaces {
  __device__ WeightPlaces(const VladShape& shape, bool by_cluster, int64_t n)
      : first(n * shape.clusters), step(1) {
    if (!by_cluster) return;
    const int64_t group = n % shape.groups;
    first = (n - group) * shape.clusters + group;
    step = shape.groups;
  }
  int64_t first, step;
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    soft_assign_any_kernel(VladShape shape, const T* assignment, const T* attention,
                           VladNorm<Sum<T>> norm, Weights<T> weights) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= shape.batch * shape.rows) return;  // the same for all lanes of a warp
  const RowScores<T> scores(shape, assignment, norm, row, lane);
  const WeightPlaces places(shape, weights.by_cluster, row);
  const Sum<T> weight = widen(attention[row]);
  scores.for_each([&](int64_t k, Sum<T> p) {
    narrow(weight * p, weights.values[places.first + k * places.step]);
  });
}

// The gradient of attention, and e in place of that of the assignment.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    soft_assign_backward_any_kernel(VladShape shape, Weights<const T> grad, const T* assignment,
                                    const T* attention, VladNorm<Sum<T>> norm,
                                    VladGradient<T, Sum<T>> out) {
  using A = Sum<T>;
  const int lane = threadIdx.x % kWarp;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= shape.batch * shape.rows) return;  // the same for all lanes of a warp
  const RowScores<T> scores(shape, assignment, norm, row, lane);
  const WeightPlaces places(shape, grad.by_cluster, row);
  const auto gradient = [&](int64_t k) {
    return widen(grad.values[places.first + k * places.step]);
  };
  A mean = 0;
  scores.for_each([&](int64_t k, A p) { mean += p * gradient(k); });
  mean = warp_sum(mean);
  if (lane == 0) narrow_saturated<T>(mean, out.attention[row]);
  const A weight = widen(attention[row]);
  scores.for_each([&](int64_t k, A p) {
    narrow(weight * p * (gradient(k) - mean), out.assignment[row * shape.clusters + k]);
  });
}

// How a block divides rows of T: kLanes lanes, 16 or 32, take a row of up to kColumns clusters, a
// lane kPieces times 16 bytes, kLanes such pieces apart.
template <typename T, int kRowLanes, int kRowPieces>
struct RowPlan {
  using Value = T;
  static constexpr int kLanes = kRowLanes, kPieces = kRowPieces;
  static constexpr int kWidth = kVector<T>;  // values of a piece
  static constexpr int kColumns = kLanes * kPieces * kWidth;
  static constexpr int kRows = kRowThreads / kLanes;  // that a block takes at a time
  static constexpr int kStride = kColumns + kWidth;   // of rows in shared memory
  static constexpr int kTile = kRows * kStride;
  // Blocks that a multiprocessor runs at a time, and that leave a thread enough registers.
  static constexpr int kForwardBlocks = kPieces == 1 ? 4 : 2;
  static constexpr int kBackwardBlocks = kPieces * kWidth > 8 ? 1 : 2;

  using Bits = uint4[kPieces];
  using Values = Sum<T>[kPieces][kWidth];
};

// The whole frames that a block takes at a time.
template <typename Plan>
__host__ __device__ inline int tile_frames(const VladShape& shape) {
  return Plan::kRows / static_cast<int>(shape.groups);
}

// Calls function(i, j) for value j of every piece i.
template <typename Plan, typename Function>
__device__ inline void for_each_value(const Function& function) {
#pragma unroll
  for (int i = 0; i < Plan::kPieces; ++i) {
#pragma unroll
    for (int j = 0; j < Plan::kWidth; ++j) function(i, j);
  }
}

// The share of a thread in every tile: one row, always of the same group, and of it the clusters
// cluster(i) and the kWidth - 1 next ones for every piece i.
template <typename Plan>
struct RowThread {
  using T = typename Plan::Value;

  __device__ explicit RowThread(const VladShape& shape)
      : groups(static_cast<int>(shape.groups)),
        clusters(static_cast<int>(shape.clusters)),
        tile_rows(tile_frames<Plan>(shape) * groups),
        slot(threadIdx.x / Plan::kLanes),
        lane(threadIdx.x % Plan::kLanes),
        rows(static_cast<int>(shape.batch * shape.rows)) {}

  static __device__ constexpr int offset(int piece) { return piece * Plan::kLanes * Plan::kWidth; }
  __device__ int cluster(int piece) const { return lane * Plan::kWidth + offset(piece); }
  __device__ bool inside(int piece) const { return cluster(piece) < clusters; }
  __device__ int row(int tile) const { return tile * tile_rows + slot; }
  __device__ bool exists(int row) const { return slot < tile_rows && row < rows; }

  // The thread's first value of a row, in memory and in a tile in shared memory.
  template <typename Value>
  __device__ Value* of(Value* values, int row) const {
    const auto first = uint64_t{static_cast<uint32_t>(row)} * static_cast<uint32_t>(clusters);
    return values + lane * Plan::kWidth + first;
  }
  __device__ T* in_tile(T* tile) const { return tile + slot * Plan::kStride + cluster(0); }

  // The pieces from the first value on; zeros where there are none.
  __device__ void load(const T* source, bool row_exists, typename Plan::Bits& bits) const {
#pragma unroll
    for (int i = 0; i < Plan::kPieces; ++i) {
      bits[i] = row_exists && inside(i) ? *reinterpret_cast<const uint4*>(source + offset(i))
                                        : uint4{0, 0, 0, 0};
    }
  }
  __device__ void store(const typename Plan::Values& values, T* target) const {
#pragma unroll
    for (int i = 0; i < Plan::kPieces; ++i) {
      if (inside(i)) store_values(values[i], Plan::kWidth, true, target + offset(i));
    }
  }

  int groups, clusters;
  int tile_rows;
  int slot, lane;  // the row of a tile, and the thread's place in it
  int rows;
};

template <typename Plan>
__device__ inline void widen_pieces(const typename Plan::Bits& bits,
                                    typename Plan::Values& values) {
#pragma unroll
  for (int i = 0; i < Plan::kPieces; ++i) {
    load_values(reinterpret_cast<const typename Plan::Value*>(&bits[i]), Plan::kWidth, true,
                values[i]);
  }
}

// A tile in the order of clusters, of which a thread moves pieces of 16 bytes from or to memory.
// In shared memory it has rows of clusters.
template <typename Plan>
struct ClusterOrder {
  using T = typename Plan::Value;

  __device__ explicit ClusterOrder(const RowThread<Plan>& thread) : thread(thread) {
    const int frame = thread.groups * thread.clusters;
#pragma unroll
    for (int i = 0; i < Plan::kPieces; ++i) {
      const int rest = index(i) % frame;
      group[i] = rest % thread.groups;
      first[i] =
          (index(i) / frame * thread.groups + group[i]) * Plan::kStride + rest / thread.groups;
    }
  }

  // Of a piece's first value, in a tile.
  static __device__ int index(int piece) {
    return (threadIdx.x + piece * kRowThreads) * Plan::kWidth;
  }
  // The number of values in a tile.
  __device__ int size(int tile) const {
    const int left = thread.rows - tile * thread.tile_rows;
    return (left < thread.tile_rows ? left : thread.tile_rows) * thread.clusters;
  }
  template <typename Value>
  __device__ Value* of(Value* values, int tile) const {
    const auto tile_size = static_cast<uint32_t>(thread.tile_rows * thread.clusters);
    return values + uint64_t{static_cast<uint32_t>(tile)} * tile_size;
  }

  // Calls function(j, place in shared memory) for the values of a piece.
  template <typename Function>
  __device__ void for_each(int piece, const Function& function) const {
    int shared = first[piece], g = group[piece];
#pragma unroll
    for (int j = 0; j < Plan::kWidth; ++j) {
      function(j, shared);
      shared += Plan::kStride;
      if (++g == thread.groups) g = 0, shared += 1 - thread.groups * Plan::kStride;
    }
  }

  __device__ void load(const T* source, int tile, typename Plan::Bits& bits) const {
    const int count = size(tile);
    source = of(source, tile);
#pragma unroll
    for (int i = 0; i < Plan::kPieces; ++i) {
      if (index(i) < count) bits[i] = *reinterpret_cast<const uint4*>(source + index(i));
    }
  }
  __device__ void scatter(const typename Plan::Bits& bits, int tile, T* shared) const {
    const int count = size(tile);
#pragma unroll
    for (int i = 0; i < Plan::kPieces; ++i) {
      if (index(i) >= count) continue;
      T values[Plan::kWidth];
      memcpy(values, &bits[i], sizeof(uint4));
      for_each(i, [&](int j, int place) { shared[place] = values[j]; });
    }
  }
  __device__ void store(const T* shared, int tile, T* target) const {
    const int count = size(tile);
    target = of(target, tile);
#pragma unroll
    for (int i = 0; i < Plan::kPieces; ++i) {
      if (index(i) >= count) continue;
      T values[Plan::kWidth];
      for_each(i, [&](int j, int place) { values[j] = shared[place]; });
      uint4 bits;
      memcpy(&bits, values, sizeof(bits));
      *reinterpret_cast<uint4*>(target + index(i)) = bits;
    }
  }

  const RowThread<Plan>& thread;
  int group[Plan::kPieces], first[Plan::kPieces];  // of every piece's first value
};

// y = (z - mean) scale + bias for a thread's clusters. Those that do not exist have y = -inf, so
// that their softmax is 0. (z scale + shift would cancel where the mean is much larger than the
// deviation.)
template <typename Plan>
struct RowNorm {
  using A = Sum<typename Plan::Value>;

  __device__ RowNorm(const VladNorm<A>& norm, const RowThread<Plan>& thread) {
    for_each_value<Plan>([&](int i, int j) {
      mean[i][j] = 0;
      scale[i][j] = thread.inside(i) ? A{1} : A{0};
      bias[i][j] = thread.inside(i) ? A{0} : -INFINITY;
    });
    if (norm.values == nullptr) return;
    const bool aligned = rows_aligned(norm.values, thread.clusters);
    const int plane = thread.groups * thread.clusters;
    const A* const values = norm.values + thread.slot % thread.groups * thread.clusters;
#pragma unroll
    for (int i = 0; i < Plan::kPieces; ++i) {
      if (!thread.inside(i)) continue;
      const A* const source = values + thread.cluster(i);
      A rstd[Plan::kWidth];
      load_values(source, Plan::kWidth, aligned, mean[i]);
      load_values(source + plane, Plan::kWidth, aligned, rstd);
      load_values(source + 2 * plane, Plan::kWidth, aligned, scale[i]);
      load_values(source + 3 * plane, Plan::kWidth, aligned, bias[i]);
#pragma unroll
      for (int j = 0; j < Plan::kWidth; ++j) scale[i][j] *= rstd[j];
    }
  }

  typename Plan::Values mean, scale, bias;
};

// Turns z - mean of a row into the exponentials of its scores; returns 1 / their sum. For results
// of 16 bits the exponentials' relative error of about 2^-22 + |score| 2^-24 does not matter.
template <typename Plan>
__device__ inline Sum<typename Plan::Value> row_softmax(const RowNorm<Plan>& norm,
                                                        typename Plan::Values& values) {
  using A = Sum<typename Plan::Value>;
  constexpr bool kHalf = sizeof(typename Plan::Value) == 2;
  A largest = -INFINITY, total = 0;
  for_each_value<Plan>([&](int i, int j) {
    values[i][j] = values[i][j] * norm.scale[i][j] + norm.bias[i][j];
    largest = maximum(largest, values[i][j]);
  });
  largest = warp_maximum<1, Plan::kLanes>(largest);
  for_each_value<Plan>([&](int i, int j) {
    const A score = values[i][j] - largest;
    total += values[i][j] = kHalf ? approximate_exp2(score * kLog2E) : exponential(score);
  });
  total = warp_sum<1, Plan::kLanes>(total);
  return kHalf ? __fdividef(1.f, total) : 1 / total;
}

template <typename Plan>
__global__ void __launch_bounds__(kRowThreads, Plan::kForwardBlocks)
    soft_assign_kernel(VladShape shape, int tiles, const typename Plan::Value* assignment,
                       const typename Plan::Value* attention,
                       VladNorm<Sum<typename Plan::Value>> norm,
                       Weights<typename Plan::Value> weights) {
  using T = typename Plan::Value;
  using A = Sum<T>;
  const RowThread<Plan> thread(shape);
  const RowNorm<Plan> table(norm, thread);
  const ClusterOrder<Plan> order(thread);
  T* shared = reinterpret_cast<T*>(dynamic_shared_memory());  // two tiles, used in turn
  int other = Plan::kTile;
  typename Plan::Bits next;
  T next_attention{};
  const auto load = [&](int tile) {
    const int row = thread.row(tile);
    const bool exists = thread.exists(row);
    thread.load(thread.of(assignment, row), exists, next);
    if (exists) next_attention = attention[row];
  };
  load(blockIdx.x);
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    typename Plan::Values values;
    widen_pieces<Plan>(next, values);
    const A weight = widen(next_attention);
    load(tile + gridDim.x);
    for_each_value<Plan>([&](int i, int j) { values[i][j] -= table.mean[i][j]; });
    const A factor = weight * row_softmax(table, values);
    for_each_value<Plan>([&](int i, int j) { values[i][j] *= factor; });
    if (!weights.by_cluster) {
      const int row = thread.row(tile);
      if (thread.exists(row)) thread.store(values, thread.of(weights.values, row));
      continue;
    }
    thread.store(values, thread.in_tile(shared));
    __syncthreads();
    order.store(shared, tile, weights.values);
    shared += other;
    other = -other;
  }
}

// What a pass of the backward computes.
enum class Pass {
  kPlain,      // without norm: all gradients
  kSums,       // with norm: the gradient of attention, the sums for norm_sums and, where the
               // statistics are constants, the gradient of the assignment
  kStatistics  // the gradient of the assignment through the statistics, from norm_sums
};

// partial[part] = the sums of e (z - mean) and of e over a part of the frames, for every column;
// a block has a part for every frame of a tile.
template <typename Plan, Pass kPass>
__global__ void __launch_bounds__(kRowThreads, Plan::kBackwardBlocks)
    soft_assign_backward_kernel(VladShape shape, int tiles,
                                Weights<const typename Plan::Value> grad,
                                const typename Plan::Value* assignment,
                                const typename Plan::Value* attention,
                                VladNorm<Sum<typename Plan::Value>> norm,
                                VladGradient<typename Plan::Value, Sum<typename Plan::Value>> out,
                                Sum<typename Plan::Value>* partial) {  // (parts, 2, G, K)
  using T = typename Plan::Value;
  using A = Sum<T>;
  const RowThread<Plan> thread(shape);
  const RowNorm<Plan> table(norm, thread);
  const ClusterOrder<Plan> order(thread);
  const int plane = thread.groups * thread.clusters;
  const int first = thread.slot % thread.groups * thread.clusters;
  // Of the thread's clusters: sums of e (z - mean) and of e; or what both mean for the gradient.
  typename Plan::Values by_score{}, by_one{};
  if constexpr (kPass == Pass::kStatistics) {
    for_each_value<Plan>([&](int i, int j) {
      if (!thread.inside(i)) return;
      const int column = first + thread.cluster(i) + j;
      by_score[i][j] = norm.values[plane + column] * out.norm_sums[column];
      by_one[i][j] = out.norm_sums[plane + column];
    });
  }
  T* shared = reinterpret_cast<T*>(dynamic_shared_memory());  // two tiles, used in turn
  int other = Plan::kTile;
  typename Plan::Bits next, next_grad{};
  T next_attention{};
  const auto load = [&](int tile) {
    const int row = thread.row(tile);
    const bool exists = thread.exists(row);
    thread.load(thread.of(assignment, row), exists, next);
    next_attention = exists ? attention[row] : T(0.f);
    if (grad.by_cluster) {
      order.load(grad.values, tile, next_grad);
    } else {
      thread.load(thread.of(grad.values, row), exists, next_grad);
    }
  };
  load(blockIdx.x);
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int row = thread.row(tile);
    const bool exists = thread.exists(row);
    if (grad.by_cluster) {
      order.scatter(next_grad, tile, shared);
      __syncthreads();
      thread.load(thread.in_tile(shared), exists, next_grad);
      shared += other;
      other = -other;
    }
    typename Plan::Values gradient, centered, p;
    widen_pieces<Plan>(next_grad, gradient);
    widen_pieces<Plan>(next, centered);
    const A weight = widen(next_attention);
    load(tile + gridDim.x);
    for_each_value<Plan>([&](int i, int j) {
      centered[i][j] -= table.mean[i][j];
      p[i][j] = centered[i][j];
    });
    const A scale = row_softmax(table, p);
    A mean = 0;
    for_each_value<Plan>([&](int i, int j) { mean += p[i][j] * gradient[i][j]; });
    mean = scale * warp_sum<1, Plan::kLanes>(mean);
    const A factor = weight * scale;
    for_each_value<Plan>([&](int i, int j) { p[i][j] *= factor * (gradient[i][j] - mean); });  // e
    if constexpr (kPass == Pass::kSums) {
      for_each_value<Plan>([&](int i, int j) {
        by_score[i][j] += p[i][j] * centered[i][j];
        by_one[i][j] += p[i][j];
      });
    }
    if (!exists) continue;
    if constexpr (kPass == Pass::kStatistics) {
      const A row_weight = norm.row_weights[row / thread.groups];
      if (row_weight != 0) {  // a frame of weight 0 may hold anything
        for_each_value<Plan>([&](int i, int j) {
          p[i][j] -= row_weight * (by_one[i][j] + centered[i][j] * by_score[i][j]);
        });
      }
    } else {
      if (thread.lane == 0) narrow_saturated<T>(mean, out.attention[row]);
      if (out.assignment == nullptr) continue;
    }
    if constexpr (kPass != Pass::kPlain) {
      for_each_value<Plan>([&](int i, int j) { p[i][j] *= table.scale[i][j]; });
    }
    thread.store(p, thread.of(out.assignment, row));
  }
  if constexpr (kPass == Pass::kSums) {
    if (thread.slot >= thread.tile_rows) return;
    const int64_t part = blockIdx.x * tile_frames<Plan>(shape) + thread.slot / thread.groups;
    A* const sums = partial + part * (2 * plane) + first;
#pragma unroll
    for (int i = 0; i < Plan::kPieces; ++i) {
      if (!thread.inside(i)) continue;
      store_values(by_score[i], Plan::kWidth, true, sums + thread.cluster(i));
      store_values(by_one[i], Plan::kWidth, true, sums + plane + thread.cluster(i));
    }
  }
}

// Calls function(plan) with the plan of the kernels for aligned rows, or function(nullptr) where
// only those for any rows fit.
template <typename T, typename Function>
auto with_row_plan(const VladShape& shape, bool aligned, const Function& function) {
  if constexpr (sizeof(T) < sizeof(double)) {
    constexpr int64_t kMostRows = 1 << 30;  // so that numbers of rows are int
    const auto fits = [&](auto plan) {
      return aligned && shape.batch * shape.rows <= kMostRows && shape.groups > 0 &&
             shape.groups <= plan.kRows && shape.clusters <= plan.kColumns;
    };
    if constexpr (sizeof(T) == 2) {
      if (fits(RowPlan<T, 16, 1>{})) return function(RowPlan<T, 16, 1>{});
    }
    if (fits(RowPlan<T, 32, 1>{})) return function(RowPlan<T, 32, 1>{});
    if (fits(RowPlan<T, 32, 2>{})) return function(RowPlan<T, 32, 2>{});
  }
  return function(nullptr);
}

// The work of a kernel for aligned rows of which a multiprocessor runs `resident` blocks.
struct RowGrid {
  template <typename Plan>
  RowGrid(Plan, const VladShape& shape, int resident, const Device& device, bool by_cluster)
      : tiles(quotient(matrix_rows(shape), tile_frames<Plan>(shape))),
        blocks(std::min<int64_t>(tiles, int64_t{resident} * device.multiprocessors)),
        shared(by_cluster ? 2 * Plan::kTile * sizeof(typename Plan::Value) : 0) {}
  int64_t tiles, blocks;
  size_t shared;
};

inline int64_t any_row_blocks(const VladShape& shape) {
  return quotient(shape.batch * shape.rows, kRowThreads / kWarp);
}

// Parts of the frames whose sums a backward takes by themselves.
template <typename Plan>
int64_t row_parts(Plan plan, const VladShape& shape, const Device& device) {
  return RowGrid(plan, shape, Plan::kBackwardBlocks, device, false).blocks *
         tile_frames<Plan>(shape);
}

template <Pass kPass, typename Plan, typename T>
cudaError_t launch_backward_pass(Plan plan, const VladShape& shape, const Weights<const T>& grad,
                                 const T* assignment, const T* attention,
                                 const VladNorm<Sum<T>>& norm, const VladGradient<T, Sum<T>>& out,
                                 Sum<T>* partial, const Device& device, cudaStream_t stream) {
  const RowGrid grid(plan, shape, Plan::kBackwardBlocks, device, grad.by_cluster);
  return launch(soft_assign_backward_kernel<Plan, kPass>, grid.blocks, kRowThreads, grid.shared,
                stream, shape, static_cast<int>(grid.tiles), grad, assignment, attention, norm, out,
                partial);
}

}  // namespace gpu

template <typename T>
cudaError_t launch_soft_assign(const VladShape& shape, const T* assignment, const T* attention,
                               const VladNorm<gpu::Sum<T>>& norm, const gpu::Weights<T>& weights,
                               const gpu::Device& device, cudaStream_t stream) {
  const bool aligned = gpu::rows_aligned(assignment, shape.clusters) &&
                       gpu::rows_aligned(weights.values, shape.clusters);
  const auto run = [&](auto plan) {
    using Plan = decltype(plan);
    if constexpr (std::is_null_pointer_v<Plan>) {
      return gpu::launch(gpu::soft_assign_any_kernel<T>, gpu::any_row_blocks(shape),
                         gpu::kRowThreads, 0, stream, shape, assignment, attention, norm, weights);
    } else {
      const gpu::RowGrid grid(plan, shape, Plan::kForwardBlocks, device, weights.by_cluster);
      return gpu::launch(gpu::soft_assign_kernel<Plan>, grid.blocks, gpu::kRowThreads, grid.shared,
                         stream, shape, static_cast<int>(grid.tiles), assignment, attention, norm,
                         weights);
    }
  };
  return gpu::with_row_plan<T>(shape, aligned, run);
}

// Bytes of workspace of launch_soft_assign_backward.
template <typename T>
int64_t soft_assign_backward_workspace(const VladShape& shape, bool norm,
                                       const gpu::Device& device) {
  if (!norm) return 0;
  const auto parts = [&](auto plan) -> int64_t {
    if constexpr (std::is_null_pointer_v<decltype(plan)>) {
      return 0;
    } else {
      return gpu::row_parts(plan, shape, device);
    }
  };
  const int64_t slabs = gpu::slabs(gpu::matrix_rows(shape));  // of the kernels for any rows
  return std::max(slabs, gpu::with_row_plan<T>(shape, true, parts)) * 2 *
         gpu::matrix_columns(shape) * sizeof(gpu::Sum<T>);
}

// Writes out.assignment, out.attention and, with norm, out.norm_sums. The workspace starts on a
// 16-byte boundary.
template <typename T>
cudaError_t launch_soft_assign_backward(const VladShape& shape, const gpu::Weights<const T>& grad,
                                        const T* assignment, const T* attention,
                                        const VladNorm<gpu::Sum<T>>& norm,
                                        const VladGradient<T, gpu::Sum<T>>& out, void* workspace,
                                        const gpu::Device& device, cudaStream_t stream) {
  using gpu::Pass;
  auto* const partial = static_cast<gpu::Sum<T>*>(workspace);
  const auto run = [&](auto plan) {
    using Plan = decltype(plan);
    if constexpr (std::is_null_pointer_v<Plan>) {
      const cudaError_t error =
          gpu::launch(gpu::soft_assign_backward_any_kernel<T>, gpu::any_row_blocks(shape),
                      gpu::kRowThreads, 0, stream, shape, grad, assignment, attention, norm, out);
      if (error != cudaSuccess || norm.values == nullptr) return error;
      return gpu::launch_norm_backward<T>(shape, assignment, norm, out, partial, stream);
    } else {
      const auto pass = [&](auto kind, const VladGradient<T, gpu::Sum<T>>& results) {
        return gpu::launch_backward_pass<kind()>(plan, shape, grad, assignment, attention, norm,
                                                 results, partial, device, stream);
      };
      if (norm.values == nullptr) return pass(std::integral_constant<Pass, Pass::kPlain>{}, out);
      auto results = out;
      if (norm.row_weights != nullptr) results.assignment = nullptr;  // needs the sums
      cudaError_t error = pass(std::integral_constant<Pass, Pass::kSums>{}, results);
      if (error != cudaSuccess) return error;
      error = gpu::launch_norm_sums_finish(shape, norm, gpu::row_parts(plan, shape, device),
                                           partial, out.norm_sums, stream);
      if (error != cudaSuccess || norm.row_weights == nullptr) return error;
      return pass(std::integral_constant<Pass, Pass::kStatistics>{}, out);
    }
  };
  const bool aligned = gpu::rows_aligned(grad.values, shape.clusters) &&
                       gpu::rows_aligned(assignment, shape.clusters) &&
                       gpu::rows_aligned(out.assignment, shape.clusters);
  return gpu::with_row_plan<T>(shape, aligned, run);
}

}  // namespace pyseg
