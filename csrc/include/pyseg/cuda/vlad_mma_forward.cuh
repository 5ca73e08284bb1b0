// The forward of the VLAD aggregation on tensor cores, see vlad_mma.cuh.
//
// A block owns rows of one video and processes them in chunks that asynchronous copies prefetch
// into shared memory. Some lanes of a warp compute a row's softmax; its weights go to shared memory
// as operands, and the sums stay in registers until the last row. K is at most 256.
#pragma once

#include <limits>
#include <type_traits>
#include <utility>

#include "pyseg/cuda/common.cuh"
#include "pyseg/cuda/mma.cuh"
#include "pyseg/cuda/vlad_fma.cuh"
#include "pyseg/cuda/vlad_mma.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

constexpr int kForwardWarps = 12;
constexpr int kForwardThreads = kForwardWarps * kWarp;
constexpr int kForwardChunk = 32;                            // rows of a chunk, or 16;
constexpr int kCopyLanes = kForwardThreads / kForwardChunk;  // threads that copy one of them
constexpr int kForwardStages = 4;  // chunks in shared memory at a time, or 3
constexpr int kForwardTilesF = 3;  // a warp computes up to 3 x 4 results of 16 x 16
constexpr int kForwardTilesK = 4;
constexpr int kSliceRows = 1024;  // at most, per block
constexpr int kForwardPad = 8;
constexpr int kForwardClusters = 256;  // the limit of K

// Starts the copy of `width` values, at most kMost, to a row in shared memory by kLanes threads, of
// which this is number `lane`. Where `inside` is false the row becomes 0, and the source is not
// read. A thread's copies have constant distances, so that they need no arithmetic.
template <int kLanes, int kMost, typename T>
__device__ inline void load_row(const T* source, bool inside, int width, bool aligned, T* target,
                                int lane) {
  if (aligned) {
    constexpr int kStep = kLanes * sizeof(uint4) / sizeof(T), kCopies = (kMost + kStep - 1) / kStep;
    const int first = lane * (sizeof(uint4) / sizeof(T));
    const auto copy = [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
      (copy_16_bytes<kIndices * kStep* static_cast<int>(sizeof(T))>(
           first + kIndices * kStep < width, target + first, source + first, inside),
       ...);
    };
    copy(std::make_integer_sequence<int, kCopies>{});
  } else {
#pragma unroll 1
    for (int i = lane; i < width; i += kLanes) target[i] = inside ? source[i] : T(0.f);
  }
}

// What depends on kWarpsF, the number of the 12 warps that divide F; the others divide K.
template <int kWarpsF>
struct ForwardTile {
  static constexpr int kF = kWarpsF * kForwardTilesF * kMmaTile;
  static constexpr int kK = kForwardWarps / kWarpsF * kForwardTilesK * kMmaTile;
  static constexpr int kRowLanes = kK > 128 ? 16 : 8;  // of a row's softmax,
  static constexpr int kColumns = kK / kRowLanes;      // with this many columns each
};

// The partition of the forward. It depends on N, F, K and the device, never on B, so that a video's
// result does not depend on its batch.
struct ForwardPlan {
  int warps_f = 0;       // 12, 6 or 3; 0: vlad_fma.cuh
  int64_t slices = 1;    // S: slices of a video's rows,
  int slice_rows = 0;    // of this many rows
  int64_t f_slices = 1;  // slices of F, each of which reads the assignment again,
  int slice_f = 0;       // of this many columns
  int chunk = 0;         // rows
  int stages = 0;
  int64_t shared = 0;
};

// A row's attention, 0 behind the last row, and its group's place in the norm table.
struct alignas(8) ForwardRow {
  float attention;
  int entries;
};

// Byte offsets into shared memory. As an argument they take no registers of the kernel.
template <typename T>
struct ForwardShared {
  __host__ __device__ constexpr ForwardShared(const VladShape& shape, bool norm,
                                              const ForwardPlan& plan)
      : stride_f(padded(plan.slice_f) + kForwardPad),
        stride_k(padded(shape.clusters) + kForwardPad),
        columns(kForwardWarps / plan.warps_f * kForwardTilesK * kMmaTile) {
    SharedLayout layout;
    features = layout.take<T>(int64_t{plan.stages} * plan.chunk * stride_f);
    scores = layout.take<T>(int64_t{plan.stages} * plan.chunk * stride_k);
    weights = layout.take<T>(2 * plan.chunk * stride_k);
    rows = layout.take<ForwardRow>(plan.slice_rows);
    mass = layout.take<float>(stride_k);
    sums = layout.take<float>(plan.warps_f * stride_k);
    table = layout.take<float2>(table_groups(shape, norm) * columns);
    size = layout.size;
  }
  int stride_f, stride_k;
  int columns;   // of the table
  int features;  // (stages, chunk, stride_f)
  int scores;    // (stages, chunk, stride_k)
  int weights;   // (2, chunk, stride_k)
  int rows;      // (slice_rows)
  int mass;      // (stride_k)
  int sums;      // (warps_f, stride_k)
  int table;     // (G or 1, columns), see ScoreTable
  int64_t size;
};

// The batch normalisation of a group's scores and the change to base 2 as y = score scale + shift.
// Columns from K on get y = -inf, of which the power is 0. Without normalisation all rows belong to
// one group.
//
// A lane of a row's softmax takes every kRowLanes-th vector of 16 bytes of the row. The entries of
// its columns lie in pairs, and those of all lanes side by side, which avoids bank conflicts.
template <typename T, int kRowLanes, int kColumns>
struct ScoreTable {
  static constexpr int kVector = sizeof(uint4) / sizeof(T);

  __device__ static int column_of(int lane, int i) {
    return (i / kVector * kRowLanes + lane) * kVector + i % kVector;
  }
  // Every thread of the block takes part; a barrier follows.
  __device__ static void fill(const VladShape& shape, const VladNorm<float>& norm, float2* table) {
    const int clusters = static_cast<int>(shape.clusters);
    const bool has_norm = norm.values != nullptr;
    const int groups = static_cast<int>(table_groups(shape, has_norm)), plane = groups * clusters;
    for (int i = threadIdx.x; i < groups * kRowLanes * kColumns; i += blockDim.x) {
      const int g = i / (kRowLanes * kColumns), pair = i / 2 / kRowLanes % (kColumns / 2);
      const int k = column_of(i / 2 % kRowLanes, 2 * pair + i % 2);
      float2 entry{0, -INFINITY};
      if (k < clusters) {
        entry = {kLog2E, 0};
        if (has_norm) {
          const float* const values = norm.values + g * clusters + k;
          const float scale = values[plane] * values[2 * plane];
          entry = {scale * kLog2E, (values[3 * plane] - values[0] * scale) * kLog2E};
        }
      }
      table[i] = entry;
    }
  }
  // The powers 2^(y - the row's largest y), and their sum. `entries` are those of the row's group;
  // `size` is the row's, a multiple of 16 values.
  __device__ static float powers(const T* scores, int size, const float2* entries, int lane,
                                 float (&p)[kColumns]) {
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kColumns; i += kVector) {
      float values[kVector];
      uint4 bits{0, 0, 0, 0};
      if (const int k = column_of(lane, i); k < size) {
        bits = *reinterpret_cast<const uint4*>(scores + k);
      }
      widen(bits, T{}, values);
#pragma unroll
      for (int j = 0; j < kVector; j += 2) {
        const float4 entry =
            *reinterpret_cast<const float4*>(entries + ((i + j) / 2 * kRowLanes + lane) * 2);
        p[i + j] = values[j] * entry.x + entry.y;
        p[i + j + 1] = values[j + 1] * entry.z + entry.w;
        largest = fmaxf(largest, fmaxf(p[i + j], p[i + j + 1]));
      }
    }
#pragma unroll
    for (int offset = 1; offset < kRowLanes; offset *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    }
    float total = 0;
#pragma unroll
    for (int i = 0; i < kColumns; i += 2) {
      p[i] = approximate_exp2(p[i] - largest);
      p[i + 1] = approximate_exp2(p[i + 1] - largest);
      total += p[i] + p[i + 1];
    }
    return warp_sum<1, kRowLanes>(total);
  }
};

// Calls function with the integral constant `count` from 1 to kMost; not at all for 0.
template <int kMost, typename Function>
__device__ inline void with_constant(int count, const Function& function) {
  if constexpr (kMost > 0) {
    if (count == kMost) return function(std::integral_constant<int, kMost>{});
    with_constant<kMost - 1>(count, function);
  }
}

// One block of 12 warps per (b, slice of rows, slice of F), b slowest. While one chunk's product
// runs, the same warps compute the next one's weights, with one barrier for both. Of a chunk, 12
// threads copy a row, 8 or 16 lanes compute its softmax, and every warp multiplies the tiles of
// kWarpsF and kWarpsK that are its own. The mass is the sum of the rounded weights, by a product
// with ones: then v = sum_n w (features - centers) holds for the weights of the product, and their
// rounding errors multiply features - centers, not features.
//
// A block that has all rows and all of F normalises its columns itself (without work); otherwise it
// writes its sums, and vlad_normalize_kernel continues.
template <typename T, int kWarpsF>
__global__ void __launch_bounds__(kForwardThreads, 1)
    vlad_aggregate_mma_kernel(VladShape shape, VladInput<T, float> in, float eps, ForwardPlan plan,
                              ForwardShared<T> layout, ForwardWorkspace<float> work,
                              VladOutput<T, float> out) {
  using M = Matrices<T>;
  using Tile = ForwardTile<kWarpsF>;
  constexpr int kWarpsK = kForwardWarps / kWarpsF;
  constexpr int kRowLanes = Tile::kRowLanes, kColumns = Tile::kColumns;
  using Table = ScoreTable<T, kRowLanes, kColumns>;
  unsigned char* const memory = dynamic_shared_memory();
  T* const features = reinterpret_cast<T*>(memory + layout.features);
  T* const scores = reinterpret_cast<T*>(memory + layout.scores);
  T* const weights = reinterpret_cast<T*>(memory + layout.weights);
  ForwardRow* const row_values = reinterpret_cast<ForwardRow*>(memory + layout.rows);
  float* const mass = reinterpret_cast<float*>(memory + layout.mass);
  float* const sums = reinterpret_cast<float*>(memory + layout.sums);
  float2* const table = reinterpret_cast<float2*>(memory + layout.table);
  const int stride_f = layout.stride_f, stride_k = layout.stride_k;

  // Sizes and indices of 32 bits halve the registers that they take; the plan ensures that they
  // suffice. Row numbers over all videos have 64 bits.
  const int N = static_cast<int>(shape.rows), F = static_cast<int>(shape.width);
  const int K = static_cast<int>(shape.clusters), clusters = stride_k - kForwardPad;
  const int f_slices = static_cast<int>(plan.f_slices), slices = static_cast<int>(plan.slices);
  const int f0 = blockIdx.x % f_slices * plan.slice_f;
  const int first = blockIdx.x / f_slices % slices * plan.slice_rows;  // of the video's rows
  const int64_t first_row = int64_t{blockIdx.x / f_slices / slices} * N + first;
  const int rows = N - first < plan.slice_rows ? N - first : plan.slice_rows;
  const int ring = plan.stages * plan.chunk;  // rows in shared memory
  const int width = F - f0 < plan.slice_f ? F - f0 : plan.slice_f;
  const int f_tiles = (width + kMmaTile - 1) / kMmaTile, k_tiles = clusters / kMmaTile;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_f = warp % kWarpsF, warp_k = warp / kWarpsF;

  // The copies: 12 threads a row.
  const bool features_aligned = rows_aligned(in.features, F);
  const bool scores_aligned = rows_aligned(in.assignment, K);
  const int copy_row = threadIdx.x / kCopyLanes, copy_lane = threadIdx.x % kCopyLanes;
  const T* const slice_features = in.features + (first_row * F + f0);
  const T* const slice_scores = in.assignment + first_row * K;
  // Here and below, of the chunk from row n of the slice on, in the ring from row `place` on.
  const auto load = [&](int n, int place) {
    if (n < rows && copy_row < plan.chunk) {
      const int row = n + copy_row, target = place + copy_row;
      load_row<kCopyLanes, Tile::kF>(slice_features + row * F, row < rows, width, features_aligned,
                                     features + target * stride_f, copy_lane);
      load_row<kCopyLanes, Tile::kK>(slice_scores + row * K, row < rows, K, scores_aligned,
                                     scores + target * stride_k, copy_lane);
    }
    commit_copies();  // an empty group keeps the count
  };

  const auto weights_of = [&](int n) { return weights + (n & plan.chunk) * stride_k; };
  const auto weigh = [&](int n, int place) {
    if (n >= rows) return;
    const T* const source = scores + place * stride_k;
    T* const target = weights_of(n);
    // A warp's rows have a distance that groups are likely to divide.
    const int distance = plan.chunk * kRowLanes / kWarp, row_lane = lane % kRowLanes;
#pragma unroll 1
    for (int i = warp; i < distance; i += kForwardWarps) {
      const int row = i + lane / kRowLanes * distance;
      const ForwardRow values = row_values[n + row];
      float p[kColumns];
      const float total =
          Table::powers(source + row * stride_k, clusters, table + values.entries, row_lane, p);
      const float factor = __fdividef(values.attention, total);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) p[j] *= factor;
#pragma unroll
      for (int j = 0; j < kColumns; j += Table::kVector) {
        const int k = Table::column_of(row_lane, j);
        const uint4 bits = to_operands(p + j, T{});
        if (k < clusters) *reinterpret_cast<uint4*>(target + (row * stride_k + k)) = bits;
      }
    }
  };

  for (int n = 0; n < ring - 2 * plan.chunk; n += plan.chunk) load(n, n);
  // Scores beyond K must be finite; copies do not write them.
  const int k_rest = clusters - K;
  for (int i = threadIdx.x; i < ring * k_rest; i += kForwardThreads) {
    scores[i / k_rest * stride_k + K + i % k_rest] = T(0.f);
  }
  const int groups = static_cast<int>(table_groups(shape, in.norm.values != nullptr));
  for (int i = threadIdx.x; i < plan.slice_rows; i += kForwardThreads) {
    row_values[i] = {i < rows ? widen(in.attention[first_row + i]) : 0.f,
                     group_of(first + i, groups) * layout.columns};
  }
  Table::fill(shape, in.norm, table);
  float products[kForwardTilesF][kForwardTilesK][2][4] = {};
  const auto multiply = [&](const T* x, const T* w, auto tiles_f, auto tiles_k) {
    constexpr int kTilesF = decltype(tiles_f)::value, kTilesK = decltype(tiles_k)::value;
#pragma unroll 1
    for (int row = 0; row < plan.chunk;
         row += M::kDepth, x += M::kDepth * stride_f, w += M::kDepth * stride_k) {
      typename M::Left left[kTilesF];
#pragma unroll
      for (int i = 0; i < kTilesF; ++i) {
        M::load_left_transposed(x + kWarpsF * kMmaTile * i, stride_f, lane, left[i]);
      }
#pragma unroll
      for (int j = 0; j < kTilesK; ++j) {
        typename M::Right right;
        M::load_right(w + kWarpsK * kMmaTile * j, stride_k, lane, right);
#pragma unroll
        for (int i = 0; i < kTilesF; ++i) {
          multiply_add(T{}, left[i], right[0], products[i][j][0]);
          multiply_add(T{}, left[i], right[1], products[i][j][1]);
        }
      }
    }
  };
  const int warp_tiles_f = (f_tiles - warp_f + kWarpsF - 1) / kWarpsF;
  const int warp_tiles_k = (k_tiles - warp_k + kWarpsK - 1) / kWarpsK;

  // The last warps, which have the fewest rows to weight, sum the weights of a tile of columns.
  constexpr int kMassTiles = (Tile::kK / kMmaTile + kForwardWarps - 1) / kForwardWarps;
  const int mass_tile = kForwardWarps - 1 - warp;
  float masses[kMassTiles][4] = {};
  const uint32_t ones[2] = {M::kOnes, M::kOnes};
  const auto add_products = [&](int n, int place) {
    if (n < 0) return;
    const T* const x = features + place * stride_f;
    const T* const w = weights_of(n);
#pragma unroll
    for (int i = 0; i < kMassTiles; ++i) {
      const int tile = mass_tile + kForwardWarps * i;
      if (tile >= k_tiles) continue;
#pragma unroll 1
      for (int row = 0; row < plan.chunk; row += M::kDepth) {
        typename M::Left left;
        M::load_left_transposed(w + row * stride_k + tile * kMmaTile, stride_k, lane, left);
        multiply_add(T{}, left, ones, masses[i]);
      }
    }
    with_constant<kForwardTilesF>(warp_tiles_f, [&](auto tiles_f) {
      with_constant<kForwardTilesK>(warp_tiles_k, [&](auto tiles_k) {
        multiply(x + warp_f * kMmaTile, w + warp_k * kMmaTile, tiles_f, tiles_k);
      });
    });
  };

  // The first round has no product: it begins with the weights of the first chunk.
  int place = ring - plan.chunk;
#pragma unroll 1
  for (int n = -plan.chunk; n < rows; n += plan.chunk) {
    if (plan.stages == kForwardStages) {  // the next chunk has arrived, others are in flight
      wait_for_copies<kForwardStages - 3>();
    } else {
      wait_for_copies<kForwardStages - 4>();
    }
    __syncthreads();  // all threads have read the last chunk, and written the weights of this one
    load(n + ring - plan.chunk, place == 0 ? ring - plan.chunk : place - plan.chunk);
    const int next_place = place + plan.chunk == ring ? 0 : place + plan.chunk;
    // Half of the warps start with the product, so that the units for it and for the softmax are
    // busy at the same time.
    if (warp / 4 % 2 == 0) weigh(n + plan.chunk, next_place);
    add_products(n, place);
    if (warp / 4 % 2 != 0) weigh(n + plan.chunk, next_place);
    place = next_place;
  }
#pragma unroll
  for (int i = 0; i < kMassTiles; ++i) {
    const int k = (mass_tile + kForwardWarps * i) * kMmaTile + lane / 4;
    if (k >= clusters || lane % 4 != 0) continue;
    mass[k] = masses[i][0];
    mass[k + 8] = masses[i][2];
  }
  __syncthreads();

  // Not computed before the loop, where it would take registers.
  const int block = opaque(blockIdx.x), part = block / f_slices;  // of (B, S)
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
    const int f_slice = block % f_slices;
    float* const vlad = work.vlad + (int64_t{part} * F + f_slice * plan.slice_f) * K;
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
      shape.width > kMost / kSliceRows || shape.clusters > kForwardClusters) {
    return {};
  }
  ForwardPlan plan;
  plan.slices = quotient(shape.rows, kSliceRows);
  plan.slice_rows =
      static_cast<int>(quotient(quotient(shape.rows, plan.slices), kForwardChunk) * kForwardChunk);
  plan.slices = quotient(shape.rows, plan.slice_rows);
  for (const int warps_f : {12, 6, 3}) {
    const int tile_f = warps_f * kForwardTilesF * kMmaTile;
    if (shape.clusters > kForwardWarps / warps_f * kForwardTilesK * kMmaTile) continue;
    plan.warps_f = warps_f;
    plan.slice_f = padded(quotient(shape.width, quotient(shape.width, tile_f)));
    plan.f_slices = quotient(shape.width, plan.slice_f);
    for (const int chunk : {kForwardChunk, kForwardChunk / 2}) {
      for (const int stages : {kForwardStages, kForwardStages - 1}) {
        plan.chunk = chunk;
        plan.stages = stages;
        plan.shared = ForwardShared<T>(shape, norm, plan).size;
        if (plan.shared <= device.shared) return plan;
      }
    }
  }
  return {};
}

template <typename T>
cudaError_t launch_vlad_forward_mma(const VladShape& shape, const VladInput<T, float>& in,
                                    double eps, const VladOutput<T, float>& out,
                                    const ForwardPlan& plan, const ForwardWorkspace<float>& work,
                                    cudaStream_t stream) {
  const auto kernel = plan.warps_f == 12  ? vlad_aggregate_mma_kernel<T, 12>
                      : plan.warps_f == 6 ? vlad_aggregate_mma_kernel<T, 6>
                                          : vlad_aggregate_mma_kernel<T, 3>;
  const cudaError_t error =
      launch(kernel, shape.batch * plan.slices * plan.f_slices, kForwardThreads, plan.shared,
             stream, shape, in, static_cast<float>(eps), plan,
             ForwardShared<T>(shape, in.norm.values != nullptr, plan), work, out);
  if (error != cudaSuccess || (plan.slices == 1 && plan.f_slices == 1)) return error;
  return launch_vlad_normalize<T>(shape, plan.slices, in.centers, eps, work, out, stream);
}

}  // namespace gpu
}  // namespace pyseg
