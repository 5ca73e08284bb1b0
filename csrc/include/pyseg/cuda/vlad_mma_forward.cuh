// The forward of the VLAD aggregation on tensor cores, see vlad_mma.cuh.
#pragma once

#include <limits>

#include "pyseg/cuda/common.cuh"
#include "pyseg/cuda/mma.cuh"
#include "pyseg/cuda/vlad_fma.cuh"
#include "pyseg/cuda/vlad_mma.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

constexpr int kForwardWarps = 12;
constexpr int kForwardThreads = kForwardWarps * kWarp;
constexpr int kForwardStages = 4;  // chunks of rows in shared memory at a time,
constexpr int kForwardChunk = 32;  // of 32 rows, or of 16
constexpr int kForwardTilesF = 3;  // a warp computes up to 3 x 4 results of 16 x 16
constexpr int kForwardTilesK = 4;
constexpr int kSliceRows = 1024;  // at most, per block
constexpr int kForwardPad = 8;

// The partition of the forward. It depends on N, F, K and the device, never on B, so that a video's
// result does not depend on its batch.
struct ForwardPlan {
  int warps_f = 0;       // 6 or 3 of the 12 warps divide F, the others K; 0: vlad_fma.cuh
  int64_t slices = 1;    // S: slices of a video's rows,
  int slice_rows = 0;    // of this many rows
  int64_t f_slices = 1;  // slices of F, each of which reads the assignment again
  int chunk = 0;         // rows
  int64_t shared = 0;

  __host__ __device__ constexpr int tile_f() const { return warps_f * kForwardTilesF * kMmaTile; }
};

// Byte offsets into shared memory. As an argument they take no registers of the kernel.
template <typename T>
struct ForwardShared {
  __host__ __device__ constexpr ForwardShared(const VladShape& shape, bool norm,
                                              const ForwardPlan& plan)
      : stride_f((shape.width < plan.tile_f() ? padded(shape.width) : plan.tile_f()) + kForwardPad),
        stride_k(padded(shape.clusters) + kForwardPad) {
    SharedLayout layout;
    features = layout.take<T>(int64_t{kForwardStages} * plan.chunk * stride_f);
    scores = layout.take<T>(int64_t{kForwardStages} * plan.chunk * stride_k);
    weights = layout.take<T>(2 * plan.chunk * stride_k);
    attention = layout.take<float>(plan.slice_rows);
    mass = layout.take<float>(stride_k);
    sums = layout.take<float>(plan.warps_f * stride_k);
    table = layout.take<float2>(table_groups(shape, norm) * stride_k);
    size = layout.size;
  }
  int stride_f, stride_k;
  int features;   // (4, chunk, stride_f)
  int scores;     // (4, chunk, stride_k)
  int weights;    // (2, chunk, stride_k)
  int attention;  // (slice_rows)
  int mass;       // (stride_k)
  int sums;       // (warps_f, stride_k): square sums of the columns
  int table;      // (G or 1, stride_k)
  int64_t size;
};

// One block of 12 warps per (b, slice of rows, slice of F), b slowest. While one chunk's product
// runs, the same warps compute the next one's weights, with one barrier between. The mass is the
// sum of the rounded weights: then v = sum_n w (features - centers) holds for the weights of the
// product, and their rounding errors multiply features - centers, not features.
//
// A block that has all rows and all of F normalises its columns itself (without work); otherwise it
// writes its sums, and vlad_normalize_kernel continues.
template <typename T, int kWarpsF>
__global__ void __launch_bounds__(kForwardThreads, 1)
    vlad_aggregate_mma_kernel(VladShape shape, VladInput<T, float> in, float eps, ForwardPlan plan,
                              ForwardShared<T> layout, ForwardWorkspace<float> work,
                              VladOutput<T, float> out) {
  using M = Matrices<T>;
  constexpr int kWarpsK = kForwardWarps / kWarpsF;
  constexpr int kPairs = 4, kRowLanes = kWarpsK * kForwardTilesK * kMmaTile / (2 * kPairs);
  constexpr int kRowsAtOnce = kForwardThreads / kRowLanes;
  unsigned char* const memory = dynamic_shared_memory();
  T* const features = reinterpret_cast<T*>(memory + layout.features);
  T* const scores = reinterpret_cast<T*>(memory + layout.scores);
  T* const weights = reinterpret_cast<T*>(memory + layout.weights);
  float* const attention = reinterpret_cast<float*>(memory + layout.attention);
  float* const mass = reinterpret_cast<float*>(memory + layout.mass);
  float* const sums = reinterpret_cast<float*>(memory + layout.sums);
  float2* const table = reinterpret_cast<float2*>(memory + layout.table);
  const int stride_f = layout.stride_f, stride_k = layout.stride_k;

  // Sizes and indices of 32 bits halve the registers that they take; the plan ensures that they
  // suffice. Row numbers over all videos have 64 bits.
  const int N = static_cast<int>(shape.rows), F = static_cast<int>(shape.width);
  const int K = static_cast<int>(shape.clusters);
  const int f_slices = static_cast<int>(plan.f_slices), slices = static_cast<int>(plan.slices);
  const int f_slice = blockIdx.x % f_slices, f0 = f_slice * plan.tile_f();
  const int part = blockIdx.x / f_slices;             // of (B, S)
  const int first = part % slices * plan.slice_rows;  // of the video's rows
  const int64_t first_row = int64_t{part / slices} * N + first;
  const int rows = N - first < plan.slice_rows ? N - first : plan.slice_rows;
  const int chunks = (rows + plan.chunk - 1) / plan.chunk;
  const int width = F - f0 < plan.tile_f() ? F - f0 : plan.tile_f();
  const int f_tiles = (width + kMmaTile - 1) / kMmaTile, k_tiles = (K + kMmaTile - 1) / kMmaTile;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_f = warp % kWarpsF, warp_k = warp / kWarpsF;
  const int row_lane = lane % kRowLanes;

  const auto load = [&](int chunk) {
    if (chunk < chunks) {
      const int slot = chunk % kForwardStages, n = chunk * plan.chunk;
      load_chunk(in.features + (first_row + n) * F + f0, F, rows - n, width,
                 rows_aligned(in.features, F), features + slot * plan.chunk * stride_f, stride_f,
                 plan.chunk);
      load_chunk(in.assignment + (first_row + n) * K, K, rows - n, K,
                 rows_aligned(in.assignment, K), scores + slot * plan.chunk * stride_k, stride_k,
                 plan.chunk);
    }
    commit_copies();  // an empty group keeps the count
  };

  const NormTable norm{table, stride_k,
                       static_cast<int>(table_groups(shape, in.norm.values != nullptr))};
  const auto weigh = [&](int chunk) {
    if (chunk >= chunks) return;
    const T* const source = scores + chunk % kForwardStages * plan.chunk * stride_k;
    T* const target = weights + chunk % 2 * plan.chunk * stride_k;
    // All lanes of a warp iterate equally often: its shuffles need them.
#pragma unroll 1
    for (int i = warp * (kWarp / kRowLanes); i < plan.chunk; i += kRowsAtOnce) {
      const int row = i + lane / kRowLanes, n = chunk * plan.chunk + row;
      const int group = group_of(first + n, norm.groups);
      const RowSoftmax<kRowLanes, kPairs> softmax(source + row * stride_k, norm, group, K,
                                                  row_lane);
      const float weight = n < rows ? attention[n] : 0.f;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int k = 2 * (row_lane + kRowLanes * j);
        if (k >= stride_k - kForwardPad) continue;
        const T w0 = n < rows ? to_operand(weight * softmax.p[j].x, T{}) : T(0.f);
        const T w1 = n < rows ? to_operand(weight * softmax.p[j].y, T{}) : T(0.f);
        store_pair(w0, w1, target + row * stride_k + k);
      }
    }
  };

  for (int chunk = 0; chunk + 1 < kForwardStages; ++chunk) load(chunk);
  for (int i = threadIdx.x; i < rows; i += kForwardThreads) {
    attention[i] = widen(in.attention[first_row + i]);
  }
  fill_norm_table(shape, in.norm, norm, table);
  wait_for_copies<kForwardStages - 2>();
  __syncthreads();
  weigh(0);

  // The last warps, which have the fewest rows to weight, sum the weights: a pair of columns per
  // thread.
  const int mass_k = 2 * (static_cast<int>(threadIdx.x) - (kForwardThreads - kMmaClusters / 2));
  if (mass_k >= 0 && mass_k < K) store_pair(0.f, 0.f, mass + mass_k);
  float products[kForwardTilesF][kForwardTilesK][2][4] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_for_copies<kForwardStages - 3>();  // chunk + 1 has arrived, others are in flight
    __syncthreads();                        // and all threads have read chunk - 1
    load(chunk + kForwardStages - 1);
    weigh(chunk + 1);
    const T* const x = features + chunk % kForwardStages * plan.chunk * stride_f;
    const T* const w = weights + chunk % 2 * plan.chunk * stride_k;
    if (mass_k >= 0 && mass_k < K) {
      float2 partial{0, 0};
#pragma unroll 8
      for (int n = 0; n < plan.chunk; ++n) {
        const float2 pair = load_pair(w + n * stride_k + mass_k);
        partial = {partial.x + pair.x, partial.y + pair.y};
      }
      const float2 before = load_pair(mass + mass_k);  // owned by this thread
      store_pair(before.x + partial.x, before.y + partial.y, mass + mass_k);
    }
#pragma unroll 1
    for (int n = 0; n < plan.chunk; n += M::kDepth) {
      typename M::Left left[kForwardTilesF];
#pragma unroll
      for (int i = 0; i < kForwardTilesF; ++i) {
        const int tile = warp_f + kWarpsF * i;
        if (tile >= f_tiles) continue;
        M::load_left_transposed(x + n * stride_f + tile * kMmaTile, stride_f, lane, left[i]);
      }
#pragma unroll
      for (int j = 0; j < kForwardTilesK; ++j) {
        const int tile = warp_k + kWarpsK * j;
        if (tile >= k_tiles) continue;
        typename M::Right right;
        M::load_right(w + n * stride_k + tile * kMmaTile, stride_k, lane, right);
#pragma unroll
        for (int i = 0; i < kForwardTilesF; ++i) {
          if (warp_f + kWarpsF * i >= f_tiles) continue;
          multiply_add(T{}, left[i], right[0], products[i][j][0]);
          multiply_add(T{}, left[i], right[1], products[i][j][1]);
        }
      }
    }
  }
  __syncthreads();

  // Calls function(i, j, half, row, f, k) for every pair of results (f, k), (f, k + 1) of the lane.
  const auto for_each_pair = [&](const auto& function) {
#pragma unroll
    for (int j = 0; j < kForwardTilesK; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = (warp_k + kWarpsK * j) * kMmaTile + half * 8 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kForwardTilesF; ++i) {
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            const int f = (warp_f + kWarpsF * i) * kMmaTile + row * 8 + lane / 4;
            if (f < width && k < K) function(i, j, half, row, f, k);
          }
        }
      }
    }
  };
  if (slices > 1 || f_slices > 1) {
    float* const vlad = work.vlad + (int64_t{part} * F + f0) * K;
    const bool pairs = K % 2 == 0;
    for_each_pair([&](int i, int j, int half, int row, int f, int k) {
      const float* const values = products[i][j][half] + 2 * row;
      float* const result = vlad + (f * K + k);
      if (pairs) {
        store_pair(values[0], values[1], result);
      } else {
        result[0] = values[0];
        if (k + 1 < K) result[1] = values[1];
      }
    });
    if (f_slice == 0) {
      float* const masses = work.masses + int64_t{part} * K;
      for (int k = threadIdx.x; k < K; k += kForwardThreads) masses[k] = mass[k];
    }
    return;
  }

#pragma unroll
  for (int j = 0; j < kForwardTilesK; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = (warp_k + kWarpsK * j) * kMmaTile + half * 8 + lane % 4 * 2;
      const float2 masses = k < K ? load_pair(mass + k) : float2{0, 0};
      float square_sums[2] = {};
#pragma unroll
      for (int i = 0; i < kForwardTilesF; ++i) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int f = (warp_f + kWarpsF * i) * kMmaTile + row * 8 + lane / 4;
          if (f >= width || k >= K) continue;
          const T* const center = in.centers + (f * K + k);
          float* const v = products[i][j][half] + 2 * row;
          v[0] -= widen(center[0]) * masses.x;
          v[1] = k + 1 < K ? v[1] - widen(center[1]) * masses.y : 0.f;
          square_sums[0] += v[0] * v[0];
          square_sums[1] += v[1] * v[1];
        }
      }
      square_sums[0] = warp_sum<4>(square_sums[0]);
      square_sums[1] = warp_sum<4>(square_sums[1]);
      if (lane < 4 && k < K)
        store_pair(square_sums[0], square_sums[1], sums + warp_f * stride_k + k);
    }
  }
  __syncthreads();
  for (int k = threadIdx.x; k < K; k += kForwardThreads) {
    float norm_square = 0;
    for (int i = 0; i < kWarpsF; ++i) norm_square += sums[i * stride_k + k];
    out.mass[int64_t{part} * K + k] = mass[k];  // with one slice a part is a video
    out.square_norm[int64_t{part} * K + k] = norm_square;
    mass[k] = inverse_root(norm_square < eps ? eps : norm_square);
  }
  __syncthreads();
  T* const output = out.output + int64_t{part} * F * K;
  const bool pairs = K % 2 == 0 && reinterpret_cast<uintptr_t>(out.output) % (2 * sizeof(T)) == 0;
  for_each_pair([&](int i, int j, int half, int row, int f, int k) {
    const float* const v = products[i][j][half] + 2 * row;
    T* const result = output + (f * K + k);
    T y0, y1;
    narrow(v[0] * mass[k], y0);
    narrow(v[1] * (k + 1 < K ? mass[k + 1] : 0.f), y1);
    if (pairs) {
      store_pair(y0, y1, result);
    } else {
      result[0] = y0;
      if (k + 1 < K) result[1] = y1;
    }
  });
}

// The partition of the forward, or warps_f = 0 if the sizes do not fit this device.
template <typename T>
constexpr ForwardPlan plan_forward(const VladShape& shape, bool norm, const Device& device) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() / 2;
  if (!device.tensor_cores || shape.rows == 0 || shape.width == 0 || shape.rows > kMost ||
      shape.width > kMost || shape.clusters > kMmaClusters) {
    return {};
  }
  ForwardPlan plan;
  plan.slices = quotient(shape.rows, kSliceRows);
  plan.slice_rows =
      static_cast<int>(quotient(quotient(shape.rows, plan.slices), kForwardChunk) * kForwardChunk);
  plan.slices = quotient(shape.rows, plan.slice_rows);
  for (const int warps_f : {6, 3}) {
    const int tile_k = kForwardWarps / warps_f * kForwardTilesK * kMmaTile;
    if (shape.clusters > tile_k) continue;
    plan.warps_f = warps_f;
    plan.f_slices = quotient(shape.width, plan.tile_f());
    for (const int chunk : {kForwardChunk, kForwardChunk / 2}) {
      plan.chunk = chunk;
      plan.shared = ForwardShared<T>(shape, norm, plan).size;
      if (plan.shared <= device.shared) return plan;
    }
  }
  return {};
}

template <typename T>
cudaError_t launch_vlad_forward_mma(const VladShape& shape, const VladInput<T, float>& in,
                                    double eps, const VladOutput<T, float>& out,
                                    const ForwardPlan& plan, const ForwardWorkspace<float>& work,
                                    cudaStream_t stream) {
  const auto kernel =
      plan.warps_f == 6 ? vlad_aggregate_mma_kernel<T, 6> : vlad_aggregate_mma_kernel<T, 3>;
  const cudaError_t error =
      launch(kernel, shape.batch * plan.slices * plan.f_slices, kForwardThreads, plan.shared,
             stream, shape, in, static_cast<float>(eps), plan,
             ForwardShared<T>(shape, in.norm.values != nullptr, plan), work, out);
  if (error != cudaSuccess || (plan.slices == 1 && plan.f_slices == 1)) return error;
  return launch_vlad_normalize<T>(shape, plan.slices, in.centers, eps, work, out, stream);
}

}  // namespace gpu
}  // namespace pyseg
