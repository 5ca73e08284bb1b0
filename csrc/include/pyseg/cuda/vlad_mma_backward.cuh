// The backward of the VLAD aggregation on tensor cores, see vlad_mma.cuh.
//
// d of a video, a matrix of operands, lies in shared memory; everything else is in registers. A
// warp takes 16 rows and all of F and K: the result of the first product, g, becomes the gradient
// of the scores in the registers where it lies, and the weights become the left operand of the
// second product without a change of lanes. Features, scores and their gradients are read and
// written in global memory by vectors. So warps wait for each other only where d changes.
//
// For that the order of F and K within 16 or 32 is not that of the instructions, see Gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "pyseg/cuda/common.cuh"
#include "pyseg/cuda/mma.cuh"
#include "pyseg/cuda/vlad_fma.cuh"
#include "pyseg/cuda/vlad_mma.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

constexpr int kBackwardWarps = 8;
constexpr int kBackwardThreads = kBackwardWarps * kWarp;
constexpr int kBackwardClusters = 144;  // more would not fit into the registers
constexpr int kColumnVector = 8;        // columns of d that a thread computes at a time
constexpr int kAhead = 3;               // units of features that a warp loads ahead, see Gradients

// d in shared memory as the right operand of both products. With g = lane / 4 and t = lane % 4:
//
// - 16 clusters are two results of 8 columns. Lane t holds, of result q, columns 2t + c: they are
//   clusters 4t + 2q + c, four adjacent ones.
// - Lane t reads 16 bytes of features of a row at a time; 16 bytes of four lanes are a unit, of 32
//   features or in TF32 16. The unit's rows of d lie in the order in which instructions take the
//   words of such a vector. In the same order the second product's results are 16 adjacent bytes.
template <typename T, int kTilesK>
struct Gradients {
  using M = Matrices<T>;
  static constexpr bool kHalves = sizeof(T) == 2;
  static constexpr int kColumns = kTilesK * kMmaTile;
  static constexpr int kStride = kColumns + 8;
  // Rows of floats are skewed, to avoid bank conflicts of both products.
  static constexpr int kFourRows = 4 * kStride + (kHalves ? 0 : 16);
  static constexpr int kVector = static_cast<int>(sizeof(uint4) / sizeof(T));
  static constexpr int kUnit = 4 * kVector;
  static constexpr int kUnitSize = kUnit / 4 * kFourRows;
  static constexpr int kUnitTiles = kUnit / kMmaTile;
  static constexpr int kSteps = kMmaTile / M::kDepth;  // of a product over 16 clusters

  // Of a feature and an even cluster, in values.
  __device__ static int place(int f, int k) {
    const int t = f % kUnit / kVector, i = f % kVector;
    const int row = f / kUnit * kUnit + (kHalves ? i / 2 * 8 + 2 * t + i % 2 : 4 * i + t);
    const int column = k / kMmaTile * kMmaTile + k % 4 / 2 * 8 + k % kMmaTile / 4 * 2;
    return row / 4 * kFourRows + row % 4 * kStride + column;
  }

  // right(i, j) = d[i of the unit's step, 0 or 1][j of the tile]
  __device__ static void load(const T* unit, int step, int tile, int lane,
                              typename M::Right& right) {
    if constexpr (kHalves) {
      M::load_right(unit + step * kMmaTile * kStride + tile * kMmaTile, kStride, lane, right);
    } else {
      const T* const at =
          unit + 2 * step * kFourRows + lane % 4 * kStride + tile * kMmaTile + lane / 4;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        right[i][0] = __float_as_uint(at[8 * i]);
        right[i][1] = __float_as_uint(at[kFourRows + 8 * i]);
      }
    }
  }

  // right(i, j) = d[j of 16 of the unit's features][i of the tile's step]
  __device__ static void load_transposed(const T* unit, int part, int tile, int step, int lane,
                                         typename M::Right& right) {
    if constexpr (kHalves) {
      M::load_right_transposed(unit + part * kMmaTile * kStride + tile * kMmaTile, kStride, lane,
                               right);
    } else {
      const int g = lane / 4;
      const T* const at =
          unit + g % 2 * kFourRows + g / 2 * kStride + tile * kMmaTile + step * 8 + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto pair = *reinterpret_cast<const float2*>(at + 2 * i * kFourRows);
        right[i][0] = __float_as_uint(pair.x);
        right[i][1] = __float_as_uint(pair.y);
      }
    }
  }
};

// The partition of the backward: blocks of `block_chunks` chunks each, a chunk of up to 8 tiles of
// 16 rows, one for each warp. A video's gradients do not depend on it.
struct BackwardPlan {
  int tiles_k = 0;      // the kernel's limit of K in tiles of 16; 0: vlad_fma.cuh
  int slices = 1;       // of F, which d in shared memory holds one after the other,
  int slice_units = 0;  // of this many units of F each, a multiple of kAhead
  int tiles = 0;        // of a video
  int chunks = 0;       // of a video
  int64_t blocks = 0;   // each with two sums of e over rows
  int block_chunks = 0;
  bool norm_sums = false;  // whether the kernel sums e; else other kernels sum the rounded e
  int64_t shared = 0;
};

// Byte offsets into shared memory. As an argument they take no registers of the kernel.
template <typename T>
struct BackwardShared {
  // A stride of the table whose multiples lie in other banks than four lanes' columns.
  __host__ __device__ static constexpr int table_stride(int tiles_k) {
    return (tiles_k + 1 - tiles_k % 2) * kMmaTile;
  }

  __host__ __device__ constexpr BackwardShared(const VladShape& shape, bool norm,
                                               const BackwardPlan& plan) {
    const int columns_padded = plan.tiles_k * kMmaTile;
    const int64_t groups = table_groups(shape, norm);
    SharedLayout layout;
    const int64_t four_rows = 4 * (columns_padded + 8) + (sizeof(T) == 2 ? 0 : 16);
    const int64_t d = int64_t{plan.slice_units} * (16 / sizeof(T)) * four_rows * sizeof(T);
    gradients = layout.take<unsigned char>(d);
    sums = layout.take<float>(plan.norm_sums ? kBackwardThreads * 8 * plan.tiles_k : 0);
    scratch = layout.take<float>(kBackwardThreads * kColumnVector);
    columns = layout.take<float>(4 * columns_padded);
    table = layout.take<float>(3 * groups * table_stride(plan.tiles_k));
    size = layout.size;
  }
  int gradients;  // Gradients of a slice of F, without the columns' scales
  int sums;       // (8 warps, K tiles, 2, 32 lanes, 4)
  int scratch;    // (256, 8)
  int columns;    // (4, padded K)
  int table;      // (3, G or 1, stride): scale and shift of the scores in base 2, and means
  int64_t size;
};

// The power of two that scales values of at most `largest` to just below 2^9, and its inverse. In
// float16 the columns of d and the rows of the weights differ by more than its range.
struct Scaling {
  float factor = 1, inverse = 1;
};
__device__ inline Scaling scaling_of(float largest) {
  constexpr uint32_t kBias = 127, kTarget = 8, kMantissa = 23;
  const uint32_t exponent = __float_as_uint(largest) >> kMantissa;
  // Zeros and tiny numbers may stay tiny; infinity and NaN must stay as they are.
  if (exponent <= kTarget || exponent >= 2 * kBias) return {};
  return {__uint_as_float((2 * kBias + kTarget - exponent) << kMantissa),
          __uint_as_float((exponent - kTarget) << kMantissa)};
}

// The inverse of a power of two.
__device__ inline float inverse_power(float power) {
  return __uint_as_float((2u * 127 << 23) - __float_as_uint(power));
}

// Reduces the values that threads hold for kColumnVector columns over all threads of the same
// columns, in a fixed order. Every thread of the block takes part; thread k < `columns` gets the
// result of column k.
template <bool kMaximum>
__device__ inline float over_columns(const float (&values)[kColumnVector], float* scratch,
                                     int columns) {
  const int groups = columns / kColumnVector, slices = kBackwardThreads / groups;
  const int slice = threadIdx.x / groups, first = threadIdx.x % groups * kColumnVector;
  __syncthreads();
  if (slice < slices) {
#pragma unroll
    for (int i = 0; i < kColumnVector; ++i) scratch[slice * columns + first + i] = values[i];
  }
  __syncthreads();
  float total = 0;
  if (threadIdx.x < columns) {
    for (int i = 0; i < slices; ++i) {
      const float value = scratch[i * columns + threadIdx.x];
      total = kMaximum ? fmaxf(total, value) : total + value;
    }
  }
  return total;
}

// The values [0, count) from `source` on, others 0, as the bits of a vector. With kAligned vectors
// lie on their boundaries and exist as a whole or not.
template <typename Bits, bool kAligned, typename T>
__device__ inline Bits load_bits(const T* source, int count) {
  Bits bits{};
  if constexpr (kAligned) {
    if (count > 0) bits = *reinterpret_cast<const Bits*>(source);
  } else {
    constexpr int kCount = sizeof(Bits) / sizeof(T);
    T values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = i < count ? source[i] : T(0.f);
    memcpy(&bits, values, sizeof(bits));
  }
  return bits;
}

template <bool kAligned, typename Bits, typename T>
__device__ inline void store_bits(const Bits& bits, int count, T* result) {
  if constexpr (kAligned) {
    if (count > 0) __stcg(reinterpret_cast<Bits*>(result), bits);
  } else {
    constexpr int kCount = sizeof(Bits) / sizeof(T);
    T values[kCount];
    memcpy(values, &bits, sizeof(bits));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) result[i] = values[i];
    }
  }
}

// Whether vectors of `Bits` lie on their boundaries in every row of `width` values.
template <typename Bits, typename T>
inline bool vectors_aligned(const T* pointer, int width) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(Bits) == 0 &&
         width * sizeof(T) % sizeof(Bits) == 0;
}

// Four adjacent values of type T.
template <typename T>
using Four = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
template <typename T>
__device__ inline float4 widen_four(const Four<T>& bits) {
  if constexpr (sizeof(T) == 2) {
    const float2 a = widen_pair(bits.x, T{}), b = widen_pair(bits.y, T{});
    return {a.x, a.y, b.x, b.y};
  } else {
    return {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
            __uint_as_float(bits.w)};
  }
}
template <typename T>
__device__ inline Four<T> narrow_four(const float (&values)[4]) {
  if constexpr (sizeof(T) == 2) {
    return {to_operands(values[0], values[1], T{}), to_operands(values[2], values[3], T{})};
  } else {
    return {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
            __float_as_uint(values[3])};
  }
}

__device__ inline void load_four(const float* source, float (&values)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(source);
  values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
}
__device__ inline void store_four(const float (&values)[4], float* result) {
  *reinterpret_cast<float4*>(result) = {values[0], values[1], values[2], values[3]};
}

// The table of the norm. Scores of clusters beyond K become -inf, so that their softmax is 0. Every
// thread of the block takes part; a barrier follows.
__device__ inline void fill_table(const VladShape& shape, const VladNorm<float>& norm, int groups,
                                  int stride, float* table) {
  const int clusters = static_cast<int>(shape.clusters), plane = groups * clusters;
  const int size = groups * stride;
  for (int i = threadIdx.x; i < size; i += kBackwardThreads) {
    const int k = i % stride;
    float scale = 1, shift = 0, mean = 0;
    if (norm.values != nullptr && k < clusters) {
      const float* const values = norm.values + i / stride * clusters + k;
      mean = values[0];
      scale = values[plane] * values[2 * plane];
      shift = values[3 * plane] - mean * scale;
    }
    table[i] = k < clusters ? scale * kLog2E : 0.f;
    table[size + i] = k < clusters ? shift * kLog2E : -INFINITY;
    table[2 * size + i] = mean;
  }
}

// Gradients of features, assignment and attention; scale and projection for the centers', and the
// norm's sums. One block of 8 warps per `block_chunks` chunks of all videos' chunks.
//
// d is kept without its columns' scales, as operands in shared memory: d[f,k] = scale[k] d'[f,k].
// The scales, of the order of eps^-1/2 for a zero column, multiply sums and weights in float. s is
// the sum over the rounded d', so that sum_f (features - centers) d' holds for the d' of the
// product. In float16, powers of two bring d' and the weights into range, see Scaling.
template <typename T, int kTilesK, bool kAligned>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    vlad_backward_mma_kernel(VladShape shape, VladInput<T, float> in, VladSaved<T, float> saved,
                             float eps, BackwardPlan plan, BackwardShared<T> layout,
                             BackwardWorkspace<float> work, VladGradient<T, float> out) {
  using M = Matrices<T>;
  using D = Gradients<T, kTilesK>;
  constexpr bool kScaled = std::is_same_v<T, __half>;
  constexpr bool kKept = kTilesK <= 7;  // the softmax stays in registers; else it is computed twice
  constexpr int kFullTiles = kTilesK == 9 ? 7 : kTilesK == 7 ? 4 : 0;
  constexpr int kColumns = D::kColumns, kVector = D::kVector;
  constexpr float kLn2 = 1 / kLog2E;
  unsigned char* const memory = dynamic_shared_memory();
  T* const gradients = reinterpret_cast<T*>(memory + layout.gradients);
  float* const scratch = reinterpret_cast<float*>(memory + layout.scratch);
  float* const scale = reinterpret_cast<float*>(memory + layout.columns);  // of d'
  float* const shift = scale + kColumns;                                   // s
  float* const projection = shift + kColumns;
  float* const factor = projection + kColumns;  // of d' before rounding
  float* const table = reinterpret_cast<float*>(memory + layout.table);

  const bool has_norm = in.norm.values != nullptr;
  const int N = static_cast<int>(shape.rows), F = static_cast<int>(shape.width);
  const int K = static_cast<int>(shape.clusters);
  const int groups = has_norm ? static_cast<int>(shape.groups) : 1;
  constexpr int kTableStride = BackwardShared<T>::table_stride(kTilesK);
  const int plane = groups * kTableStride;
  const int units = (F + D::kUnit - 1) / D::kUnit;  // in shared memory, rows beyond are 0
  const int last_slice = out.features == nullptr ? -1 : plan.slices - 1;  // of the second product
  const bool final = has_norm && in.norm.row_weights == nullptr && plan.norm_sums;
  const int lane = threadIdx.x % kWarp;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarp, 0);  // known to be uniform
  const int lane_row = lane / 4, t = lane % 4;

  fill_table(shape, in.norm, groups, kTableStride, table);

  // d' of slice `slice` of F, and the thread's parts of s.
  constexpr int kGroups = kColumns / kColumnVector, kThreadsF = kBackwardThreads / kGroups;
  const auto fill = [&](int b, int slice, auto&& add_shifts) {
    const int thread = opaque(threadIdx.x);
    const int thread_f = thread / kGroups, k0 = thread % kGroups * kColumnVector;
    const T* const grad = saved.grad + int64_t{b} * F * K + k0;
    const T* const output = saved.output + int64_t{b} * F * K + k0;
    const bool aligned =
        rows_aligned(saved.grad, K) && rows_aligned(saved.output, K) && k0 + kColumnVector <= K;
    const int size = plan.slice_units * D::kUnit, first = slice * size;
#pragma unroll 1
    for (int i = thread_f < kThreadsF ? thread_f : size; i < size; i += kThreadsF) {
      const int64_t at = int64_t{first + i} * K;
      const int count = first + i < F ? K - k0 : 0;
      float g[kColumnVector], y[kColumnVector];
      load_values(grad + at, count, aligned && count > 0, g);
      load_values(output + at, count, aligned && count > 0, y);
#pragma unroll
      for (int j = 0; j < kColumnVector; ++j) {
        g[j] = widen(to_operand((g[j] - y[j] * projection[k0 + j]) * factor[k0 + j], T{}));
      }
#pragma unroll
      for (int j = 0; j < kColumnVector; j += 2) {
        store_pair(T(g[j]), T(g[j + 1]), gradients + D::place(i, k0 + j));
      }
      add_shifts(at, count, g);
    }
  };

  // The columns' scale, projection and s of video b, and d' of its first slice.
  const auto prepare = [&](int b, bool write) {
    const int thread = opaque(threadIdx.x);
    const int thread_f = thread / kGroups, k0 = thread % kGroups * kColumnVector;
    const T* const grad = saved.grad + int64_t{b} * F * K + k0;
    const T* const output = saved.output + int64_t{b} * F * K + k0;
    const bool aligned =
        rows_aligned(saved.grad, K) && rows_aligned(saved.output, K) && k0 + kColumnVector <= K;
    float products[kColumnVector] = {}, bounds[kColumnVector] = {};
#pragma unroll 2
    for (int f = thread_f < kThreadsF ? thread_f : F; f < F; f += kThreadsF) {
      float g[kColumnVector], y[kColumnVector];
      load_values(grad + int64_t{f} * K, K - k0, aligned, g);
      load_values(output + int64_t{f} * K, K - k0, aligned, y);
#pragma unroll
      for (int i = 0; i < kColumnVector; ++i) {
        products[i] += g[i] * y[i];
        if constexpr (kScaled) bounds[i] = fmaxf(bounds[i], fabsf(g[i]));
      }
    }
    // Its barriers also end the use of the last video's d' and columns.
    const float product = over_columns<false>(products, scratch, kColumns);
    const float bound = kScaled ? over_columns<true>(bounds, scratch, kColumns) : 0.f;
    if (threadIdx.x < kColumns) {
      const int k = threadIdx.x;
      const float norm_square = k < K ? saved.square_norm[int64_t{b} * K + k] : eps;
      const bool clamped = norm_square < eps;
      const float column_scale = inverse_root(clamped ? eps : norm_square);
      const float column_projection = clamped ? 0.f : product;
      if (write && k < K) {
        work.columns[int64_t{b} * 3 * K + k] = column_scale;
        work.columns[(int64_t{b} * 3 + 1) * K + k] = column_projection;
      }
      Scaling scaling;
      // |output| is at most 1, or slightly more after rounding.
      if constexpr (kScaled) scaling = scaling_of(bound + 1.01f * fabsf(column_projection));
      scale[k] = k < K ? column_scale * scaling.inverse : 0.f;
      projection[k] = column_projection;
      factor[k] = scaling.factor;
    }
    __syncthreads();
    float shifts[kColumnVector] = {};
    const bool centers_aligned = rows_aligned(in.centers, K) && k0 + kColumnVector <= K;
    for (int slice = plan.slices - 1; slice >= 0; --slice) {
      fill(b, slice, [&](int64_t at, int count, const float (&d)[kColumnVector]) {
        float c[kColumnVector];
        load_values(in.centers + k0 + at, count, centers_aligned && count > 0, c);
#pragma unroll
        for (int j = 0; j < kColumnVector; ++j) shifts[j] -= d[j] * c[j];
      });
    }
    const float total = over_columns<false>(shifts, scratch, kColumns);
    if (threadIdx.x < kColumns) shift[threadIdx.x] = total * scale[threadIdx.x];
    __syncthreads();
  };
  // Replaces the slice of F in shared memory if it is another one.
  int present = 0;
  const auto replace = [&](int b, int slice) {
    if (slice == present) return;
    present = slice;
    __syncthreads();
    fill(b, slice, [](int64_t, int, const float (&)[kColumnVector]) {});
    __syncthreads();
  };

  uint4 ahead[kAhead][2];
  // Of the lane's two rows of a tile.
  const auto load_ahead = [&](int b, int tile, int first) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = tile * kMmaTile + lane_row + 8 * h, n = row < N ? row : N - 1;
        const int f = (first + j) * D::kUnit + t * kVector;
        ahead[j][h] = load_bits<uint4, kAligned>(in.features + (int64_t{b} * N + n) * F + f, F - f);
      }
    }
  };

  // The lane's sums of e (scores - means) and of e for its clusters: [tile][2][lane][4].
  constexpr int kLaneValues = kWarp * 4;
  float* const sums = reinterpret_cast<float*>(memory + layout.sums);
  float* const lane_sums = sums + warp * kTilesK * 2 * kLaneValues + 4 * lane;
  if (plan.norm_sums) {
    for (int i = 0; i < 2 * kTilesK; ++i) {
      store_four({0, 0, 0, 0}, lane_sums + i * kLaneValues);
    }
  }
  const auto end_of_block = [&] {
    const int chunks = static_cast<int>(shape.batch) * plan.chunks;
    const int end = (opaque(blockIdx.x) + 1) * plan.block_chunks;
    return end < chunks ? end : chunks;
  };
#pragma unroll 1
  for (int start = blockIdx.x * plan.block_chunks; start < end_of_block();) {
    const int b = start / plan.chunks, first = start - b * plan.chunks;
    const int rest = end_of_block() - b * plan.chunks;
    const int end = rest < plan.chunks ? rest : plan.chunks;
    prepare(b, first == 0);
    present = 0;
    load_ahead(b, first * kBackwardWarps + warp, 0);

#pragma unroll 1
    for (int chunk = first; chunk < end; ++chunk) {
      const int tile = chunk * kBackwardWarps + warp;
      if (plan.slices == 1 && tile >= plan.tiles) break;
      // Of each of the two rows the place of the lane's first features. Instead of a row that does
      // not exist the last one is read, with an attention of 0 and without results.
      const int row = tile * kMmaTile + lane_row, last = N - 1;
      const bool inside[2] = {row <= last, row + 8 <= last};
      const int64_t first_row = int64_t{b} * N;
      const int64_t index[2] = {first_row + (inside[0] ? row : last),
                                first_row + (inside[1] ? row + 8 : last)};
      const int64_t at_f[2] = {index[0] * F + kVector * t, index[1] * F + kVector * t};
      const int width = F - kVector * t, clusters = K - 4 * t;

      // g[n,k] = sum_f features[n,f] d'[f,k]
      float g[kTilesK][2][4] = {};
#pragma unroll 1
      for (int slice = 0; slice < plan.slices; ++slice) {
        const int first_unit = slice * plan.slice_units, end_unit = first_unit + plan.slice_units;
        if (slice > 0) load_ahead(b, tile, first_unit);
        replace(b, slice);
#pragma unroll 1
        for (int unit0 = first_unit; unit0 < end_unit; unit0 += kAhead) {
          const T* const d = gradients + (unit0 - first_unit) * D::kUnitSize;
#pragma unroll
          for (int j = 0; j < kAhead; ++j) {
            const uint4 words[2] = {ahead[j][0], ahead[j][1]};
            const int f = (unit0 + kAhead + j) * D::kUnit;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              ahead[j][h] = load_bits<uint4, kAligned>(in.features + at_f[h] + f,
                                                       unit0 + kAhead < end_unit ? width - f : 0);
            }
#pragma unroll
            for (int step = 0; step < 2; ++step) {
              typename M::Left left;
              left[0] = step == 0 ? words[0].x : words[0].z;
              left[1] = step == 0 ? words[1].x : words[1].z;
              left[2] = step == 0 ? words[0].y : words[0].w;
              left[3] = step == 0 ? words[1].y : words[1].w;
              if constexpr (sizeof(T) != 2) {
#pragma unroll
                for (uint32_t& word : left) {
                  word = __float_as_uint(round_tf32(__uint_as_float(word)));
                }
              }
#pragma unroll
              for (int i = 0; i < kTilesK; ++i) {
                typename M::Right right;
                D::load(d + j * D::kUnitSize, step, i, lane, right);
                multiply_add(T{}, left, right[0], g[i][0]);
                multiply_add(T{}, left, right[1], g[i][1]);
              }
            }
          }
        }
      }

      // Not computed before the product, where it would take registers.
      const int64_t later_row = first_row + opaque(row);
      const int64_t at_k[2] = {(inside[0] ? later_row : first_row + last) * K + 4 * t,
                               (inside[1] ? later_row + 8 : first_row + last) * K + 4 * t};
      // All columns of the first tiles exist, see plan_backward.
      const auto columns_from = [&](int i) {
        return kAligned && i < kFullTiles ? 4 : clusters - i * kMmaTile;
      };
      // `zero` keeps the compiler from doing so in registers where a later pass reads them again.
      const auto scores = [&](int i, int h, int zero) {
        return widen_four<T>(load_bits<Four<T>, kAligned>(
            in.assignment + at_k[h] + zero + i * kMmaTile, columns_from(i)));
      };

      // y in base 2. Where the softmax does not stay in registers, a loop here and branches below
      // keep the compiler from filling them with values that it loads too early.
      const float* const entries[2] = {table + group_of(row, groups) * kTableStride + 4 * t,
                                       table + group_of(row + 8, groups) * kTableStride + 4 * t};
      const auto score_of = [&](int i, int h, int zero, float (&y)[4]) {
        const float4 four = scores(i, h, zero);
        float scales[4], shifts[4];
        load_four(entries[h] + zero + i * kMmaTile, scales);
        load_four(entries[h] + plane + zero + i * kMmaTile, shifts);
        y[0] = four.x * scales[0] + shifts[0];
        y[1] = four.y * scales[1] + shifts[1];
        y[2] = four.z * scales[2] + shifts[2];
        y[3] = four.w * scales[3] + shifts[3];
      };
      float p[kKept ? kTilesK : 1][2][4];
      float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll(kKept ? kTilesK : 3)
      for (int i = 0; i < kTilesK; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float y[4];
          score_of(i, h, 0, y);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            largest[h] = fmaxf(largest[h], y[j]);
            if constexpr (kKept) p[i][h][j] = y[j];
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) largest[h] = warp_maximum<1, 4>(largest[h]);
      // exp(y - max), of which p becomes a multiple.
      const auto exponentials = [&](int i, int h, int zero, float (&values)[4]) {
        if constexpr (kKept) {
#pragma unroll
          for (int j = 0; j < 4; ++j) values[j] = p[i][h][j];
        } else {
          score_of(i, h, zero, values);
        }
#pragma unroll
        for (float& value : values) value = approximate_exp2(value - largest[h]);
      };

      // g scale + s, the gradient of the weights, replaces g; d_attention[n] = sum_k p[n,k] g[n,k].
      float total[2] = {}, mean[2] = {}, bound[2] = {};
      int zero = opaque(0);
#pragma unroll
      for (int i = 0; i < kTilesK; ++i) {
        if (!kKept && i * kMmaTile >= K) continue;
        float scales[4], shifts[4];
        load_four(scale + i * kMmaTile + 4 * t, scales);
        load_four(shift + i * kMmaTile + 4 * t, shifts);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float values[4];
          exponentials(i, h, zero, values);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& gradient = g[i][j / 2][2 * h + j % 2];
            gradient = gradient * scales[j] + shifts[j];
            total[h] += values[j];
            mean[h] += values[j] * gradient;
            if constexpr (kScaled) bound[h] = fmaxf(bound[h], values[j] * scales[j]);
            if constexpr (kKept) p[i][h][j] = values[j];
          }
        }
      }
      float weight[2];
      float power[2] = {1, 1};  // of two, the scaling of the weights
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float share = 1.f / warp_sum<1, 4>(total[h]);
        mean[h] = warp_sum<1, 4>(mean[h]) * share;
        weight[h] = (inside[h] ? widen(in.attention[first_row + row + 8 * h]) : 0.f) * share;
        if (inside[h] && t == 0)
          narrow_saturated<T>(mean[h], out.attention[first_row + row + 8 * h]);
        if constexpr (kScaled) {
          power[h] = scaling_of(warp_maximum<1, 4>(bound[h]) * fabsf(weight[h])).factor;
        }
      }

      // e, and the weights as operands.
      uint32_t left[kTilesK][D::kSteps][4] = {};
      zero = opaque(0);
#pragma unroll
      for (int i = 0; i < kTilesK; ++i) {
        if (!kKept && i * kMmaTile >= K) continue;
        float scales[4], weights[2][4], e[2][4];
        load_four(scale + i * kMmaTile + 4 * t, scales);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if constexpr (kKept) {
#pragma unroll
            for (int j = 0; j < 4; ++j) weights[h][j] = p[i][h][j];
          } else {
            exponentials(i, h, zero, weights[h]);
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            weights[h][j] *= weight[h];
            e[h][j] = weights[h][j] * (g[i][j / 2][2 * h + j % 2] - mean[h]);
            weights[h][j] *= scales[j];
            if constexpr (kScaled) weights[h][j] *= power[h];
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int q = 0; q < 2; ++q) {
            if constexpr (sizeof(T) == 2) {
              left[i][0][2 * q + h] = to_operands(weights[h][2 * q], weights[h][2 * q + 1], T{});
            } else {
              left[i][q][h] = __float_as_uint(round_tf32(weights[h][2 * q]));
              left[i][q][2 + h] = __float_as_uint(round_tf32(weights[h][2 * q + 1]));
            }
          }
        }
        if (plan.norm_sums) {
          float means[4], by_score[4], by_one[4];
          load_four(entries[0] + 2 * plane + i * kMmaTile, means);
          load_four(lane_sums + 2 * i * kLaneValues, by_score);
          load_four(lane_sums + (2 * i + 1) * kLaneValues, by_one);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float4 four = scores(i, h, zero);
            by_score[0] += e[h][0] * (four.x - means[0]);
            by_score[1] += e[h][1] * (four.y - means[1]);
            by_score[2] += e[h][2] * (four.z - means[2]);
            by_score[3] += e[h][3] * (four.w - means[3]);
#pragma unroll
            for (int j = 0; j < 4; ++j) by_one[j] += e[h][j];
          }
          store_four(by_score, lane_sums + 2 * i * kLaneValues);
          store_four(by_one, lane_sums + (2 * i + 1) * kLaneValues);
        }
        if (final) {
          float norm_scales[4];
          load_four(entries[0] + i * kMmaTile, norm_scales);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
#pragma unroll
            for (int j = 0; j < 4; ++j) e[h][j] *= norm_scales[j] * kLn2;
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          store_bits<kAligned>(narrow_four<T>(e[h]), inside[h] ? columns_from(i) : 0,
                               out.assignment + at_k[h] + i * kMmaTile);
        }
      }

      if (chunk + 1 < end) load_ahead(b, tile + kBackwardWarps, 0);

      T* const result =
          out.features + (first_row + opaque(row)) * F + kVector * t;  // of the first row
      // d_features[n,f] = sum_k (attention[n] p[n,k] scale[k]) d'[f,k]
      const auto multiply = [&](const T* d, int unit, auto count) {
        constexpr int kCount = decltype(count)::value;
        float products[kCount][2 * D::kUnitTiles][4] = {};
#pragma unroll
        for (int i = 0; i < kTilesK; ++i) {
#pragma unroll
          for (int step = 0; step < D::kSteps; ++step) {
#pragma unroll
            for (int u = 0; u < kCount; ++u) {
#pragma unroll
              for (int part = 0; part < D::kUnitTiles; ++part) {
                typename M::Right right;
                D::load_transposed(d + u * D::kUnitSize, part, i, step, lane, right);
                multiply_add(T{}, left[i][step], right[0], products[u][2 * part]);
                multiply_add(T{}, left[i][step], right[1], products[u][2 * part + 1]);
              }
            }
          }
        }
#pragma unroll
        for (int u = 0; u < kCount; ++u) {
          const int f = (unit + u) * D::kUnit;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float inverse = kScaled ? inverse_power(power[h]) : 1.f;
            uint32_t words[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              if constexpr (sizeof(T) == 2) {
                words[j] = to_operands(products[u][j][2 * h] * inverse,
                                       products[u][j][2 * h + 1] * inverse, T{});
              } else {
                words[j] = __float_as_uint(products[u][j / 2][2 * h + j % 2]);
              }
            }
            store_bits<kAligned>(uint4{words[0], words[1], words[2], words[3]},
                                 inside[h] ? width - f : 0, result + h * 8 * F + f);
          }
        }
      };
#pragma unroll 1
      for (int slice = last_slice; slice >= 0; --slice) {
        replace(b, slice);
        constexpr int kMany = sizeof(T) == 2 ? 2 : 4;
        int unit = slice * plan.slice_units;
        const int end_unit = unit + plan.slice_units < units ? unit + plan.slice_units : units;
        const T* d = gradients;
#pragma unroll 1
        for (; unit + kMany <= end_unit; unit += kMany, d += kMany * D::kUnitSize) {
          multiply(d, unit, std::integral_constant<int, kMany>{});
        }
#pragma unroll 1
        for (; unit < end_unit; ++unit, d += D::kUnitSize)
          multiply(d, unit, std::integral_constant<int, 1>{});
      }
    }
    start += end - first;
  }

  if (!plan.norm_sums) return;
  // Over the warps and the lanes of the same group.
  __syncthreads();
  const int columns = opaque(groups) * K;
  for (int i = threadIdx.x; i < 2 * columns; i += kBackwardThreads) {
    const int which = i / columns, group = i / K % groups, k = i % K;
    const float* const from = sums + (k / kMmaTile * 2 + which) * kLaneValues + k % kMmaTile;
    float sum = 0;
    for (int w = 0; w < kBackwardWarps; ++w) {
      for (int row = group; row < 8; row += groups) {
        sum += from[w * kTilesK * 2 * kLaneValues + row * kMmaTile];
      }
    }
    work.norm_sums[blockIdx.x * int64_t{2 * columns} + i] = sum;
  }
}

// The partition of the backward, or tiles_k = 0 if the sizes do not fit this device.
template <typename T>
constexpr BackwardPlan plan_backward(const VladShape& shape, bool norm, const Device& device) {
  if (!device.tensor_cores || shape.batch == 0 || shape.rows == 0 || shape.width == 0 ||
      shape.clusters > kBackwardClusters) {
    return {};
  }
  BackwardPlan plan;
  const int tiles_k = padded(shape.clusters) / kMmaTile;
  plan.tiles_k = tiles_k <= 4 ? 4 : tiles_k <= 7 ? 7 : 9;
  const int64_t groups = table_groups(shape, norm);
  plan.norm_sums = norm && 8 % groups == 0;
  constexpr int kUnit = 64 / sizeof(T);
  const int64_t parts = quotient(shape.width, kUnit * kAhead);
  for (plan.slices = 1;; ++plan.slices) {
    plan.slice_units = static_cast<int>(quotient(parts, plan.slices)) * kAhead;
    plan.shared = BackwardShared<T>(shape, norm, plan).size;
    if (plan.shared <= device.shared) break;
    if (plan.slice_units == kAhead) return {};
  }
  plan.slices = static_cast<int>(quotient(parts * kAhead, plan.slice_units));
  plan.tiles = static_cast<int>(quotient(shape.rows, kMmaTile));
  plan.chunks = static_cast<int>(quotient(plan.tiles, kBackwardWarps));
  const int64_t chunks = shape.batch * plan.chunks;
  if (chunks > std::numeric_limits<int>::max() / 2) return {};
  plan.block_chunks =
      static_cast<int>(quotient(chunks, std::min<int64_t>(chunks, device.multiprocessors)));
  plan.blocks = quotient(chunks, plan.block_chunks);
  return plan;
}

template <typename T, bool kAligned>
auto backward_kernel(int tiles_k) {
  return tiles_k == 4   ? vlad_backward_mma_kernel<T, 4, kAligned>
         : tiles_k == 7 ? vlad_backward_mma_kernel<T, 7, kAligned>
                        : vlad_backward_mma_kernel<T, 9, kAligned>;
}

// All gradients but those of the norm. With it, out.assignment holds e, or the gradient itself
// where there are no row weights and plan.norm_sums is set; then work.norm_sums holds plan.blocks
// parts.
template <typename T>
cudaError_t launch_vlad_backward_mma(const VladShape& shape, const VladInput<T, float>& in,
                                     const VladSaved<T, float>& saved, double eps,
                                     const VladGradient<T, float>& out, const BackwardPlan& plan,
                                     const BackwardWorkspace<float>& work, cudaStream_t stream) {
  const int F = static_cast<int>(shape.width), K = static_cast<int>(shape.clusters);
  const bool aligned =
      vectors_aligned<uint4>(in.features, F) && vectors_aligned<uint4>(out.features, F) &&
      vectors_aligned<Four<T>>(in.assignment, K) && vectors_aligned<Four<T>>(out.assignment, K);
  const auto kernel =
      aligned ? backward_kernel<T, true>(plan.tiles_k) : backward_kernel<T, false>(plan.tiles_k);
  const cudaError_t error =
      launch(kernel, plan.blocks, kBackwardThreads, plan.shared, stream, shape, in, saved,
             static_cast<float>(eps), plan,
             BackwardShared<T>(shape, in.norm.values != nullptr, plan), work, out);
  if (error != cudaSuccess) return error;
  return launch_vlad_centers<T>(shape, saved, work.columns, out.centers, stream);
}

}  // namespace gpu
}  // namespace pyseg
