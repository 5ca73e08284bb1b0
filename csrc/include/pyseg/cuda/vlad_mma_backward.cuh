// The backward of the VLAD aggregation on tensor cores, see vlad_mma.cuh.
#pragma once

#include <algorithm>
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
constexpr int kColumnVector = 8;  // columns of d that a thread computes at a time
// Strides for matrices that are read along their rows, see Matrices.
template <typename T>
constexpr int kBackwardPad = sizeof(T) == 2 ? 8 : 4;

// The partition of the backward: chunks of 16 warps_m m_tiles rows, `stages` of them in shared
// memory, a range of them for each of a video's blocks. A video's gradients do not depend on it.
struct BackwardPlan {
  int warps_m = 0;  // of the 8 warps divide a chunk's rows, the others F and K; 0: vlad_fma.cuh
  int m_tiles = 0;  // results of 16 rows for each warp
  int stages = 0;
  int64_t chunks = 0;        // of a video
  int64_t slices = 1;        // blocks of a video,
  int64_t slice_chunks = 0;  // of this many chunks
  bool norm_sums = false;    // whether the kernel sums e; else other kernels sum the rounded e
  int64_t shared = 0;

  __host__ __device__ constexpr int chunk() const { return kMmaTile * warps_m * m_tiles; }
  // Each with two sums of e over rows.
  constexpr int64_t parts(int64_t batch) const { return batch * slices * warps_m; }
};

// Byte offsets into shared memory. As an argument they take no registers of the kernel.
template <typename T>
struct BackwardShared {
  __host__ __device__ constexpr BackwardShared(const VladShape& shape, bool norm,
                                               const BackwardPlan& plan)
      : clusters(padded(shape.clusters)),
        stride_f(padded(shape.width) + kBackwardPad<T>),
        stride_k(clusters + kBackwardPad<T>) {
    const int chunk = plan.chunk();
    SharedLayout layout;
    gradients = layout.take<T>(int64_t{padded(shape.width)} * stride_k);
    features = layout.take<T>(int64_t{plan.stages} * chunk * stride_f);
    scores = layout.take<T>(int64_t{plan.stages} * chunk * stride_k);
    weights = layout.take<T>(chunk * stride_k);
    scratch = layout.take<float>(kBackwardThreads * kColumnVector);
    columns = layout.take<float>(4 * clusters);
    rows = layout.take<float>(4 * chunk);
    means = layout.take<float>(kBackwardWarps / plan.warps_m * chunk);
    table = layout.take<float2>(table_groups(shape, norm) * clusters);
    size = layout.size;
  }
  int clusters, stride_f, stride_k;
  int gradients;  // (F, stride_k): d of the video, without its columns' scales
  int features;   // (stages, chunk, stride_f)
  int scores;     // (stages, chunk, stride_k)
  int weights;    // (chunk, stride_k): attention p scale
  int scratch;    // (256, 8)
  int columns;    // (4, clusters)
  int rows;       // (4, chunk)
  int means;      // (warps over columns, chunk): parts of d_attention
  int table;      // (G or 1, clusters)
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

// Gradients of features, assignment and attention; scale and projection for the centers', and the
// norm's sums. One block of 8 warps per (b, slice of chunks), b slowest; kWarpsM of the warps
// divide the rows of a chunk, the others F and K.
//
// d is kept without its columns' scales, as operands in shared memory: d[f,k] = scale[k] d'[f,k].
// The scales, of the order of eps^-1/2 for a zero column, multiply sums and weights in float. s is
// the sum over the rounded d', so that sum_f (features - centers) d' holds for the d' of the
// product. In float16, powers of two bring d' and the weights into range, see Scaling.
template <typename T, int kWarpsM, int kTilesM>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    vlad_backward_mma_kernel(VladShape shape, VladInput<T, float> in, VladSaved<T, float> saved,
                             float eps, BackwardPlan plan, BackwardShared<T> layout,
                             BackwardWorkspace<float> work, VladGradient<T, float> out) {
  using M = Matrices<T>;
  constexpr bool kScaled = std::is_same_v<T, __half>;
  constexpr int kChunk = kMmaTile * kWarpsM * kTilesM;
  constexpr int kWarpsN = kBackwardWarps / kWarpsM;
  constexpr int kTilesK = kWarpsN == 4 ? 3 : 2;  // of 16 columns, for each warp
  constexpr int kTilesF = kWarpsN == 4 ? 5 : 3;  // at a time
  constexpr int kRowLanes = 16, kPairs = kMmaClusters / (2 * kRowLanes);
  unsigned char* const memory = dynamic_shared_memory();
  const bool has_norm = in.norm.values != nullptr;
  const int stride_f = layout.stride_f, stride_k = layout.stride_k, clusters = layout.clusters;
  T* const gradients = reinterpret_cast<T*>(memory + layout.gradients);
  T* const weights = reinterpret_cast<T*>(memory + layout.weights);
  float* const scratch = reinterpret_cast<float*>(memory + layout.scratch);
  float* const scale = reinterpret_cast<float*>(memory + layout.columns);  // of d'
  float* const shift = scale + clusters;                                   // s
  float* const projection = shift + clusters;
  float* const factor = projection + clusters;  // of d' before rounding
  float* const largest = reinterpret_cast<float*>(memory + layout.rows);
  float* const row_scale = largest + kChunk;
  float* const attention = row_scale + kChunk;
  float* const inverse = attention + kChunk;  // of the weights' scaling
  float* const means = reinterpret_cast<float*>(memory + layout.means);
  float2* const table = reinterpret_cast<float2*>(memory + layout.table);

  const int64_t N = shape.rows;
  const int F = static_cast<int>(shape.width), K = static_cast<int>(shape.clusters);
  const int f_tiles = (F + kMmaTile - 1) / kMmaTile, k_tiles = clusters / kMmaTile;
  const int64_t slice = blockIdx.x % plan.slices, b = blockIdx.x / plan.slices;
  const int64_t first_chunk = slice * plan.slice_chunks;
  const int64_t end_chunk =
      first_chunk + plan.slice_chunks < plan.chunks ? first_chunk + plan.slice_chunks : plan.chunks;
  const bool features_aligned = rows_aligned(in.features, F);
  const bool scores_aligned = rows_aligned(in.assignment, K);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_m = warp % kWarpsM, warp_n = warp / kWarpsM;
  const int lane_row = lane / 4, lane_column = lane % 4 * 2;

  const auto slot_of = [&](int64_t chunk) {
    return plan.stages == 1 ? 0 : static_cast<int>(chunk % 2);
  };
  const auto features_of = [&](int64_t chunk) {
    return reinterpret_cast<T*>(memory + layout.features) + slot_of(chunk) * kChunk * stride_f;
  };
  const auto scores_of = [&](int64_t chunk) {
    return reinterpret_cast<T*>(memory + layout.scores) + slot_of(chunk) * kChunk * stride_k;
  };
  const auto rows_of = [&](int64_t chunk) {
    const int64_t rest = N - chunk * kChunk;
    return rest < kChunk ? static_cast<int>(rest) : kChunk;
  };
  const auto load = [&](int64_t chunk) {
    const int64_t row = b * N + chunk * kChunk;
    load_chunk(in.features + row * F, F, rows_of(chunk), F, features_aligned, features_of(chunk),
               stride_f, kChunk);
    load_chunk(in.assignment + row * K, K, rows_of(chunk), K, scores_aligned, scores_of(chunk),
               stride_k, kChunk);
    commit_copies();
  };
  if (plan.stages > 1 && first_chunk < end_chunk) load(first_chunk);

  // Terms beyond F must be 0; copies and gradients do not write them.
  const int f_rest = f_tiles * kMmaTile - F;
  for (int i = threadIdx.x; i < plan.stages * kChunk * f_rest; i += kBackwardThreads) {
    features_of(0)[i / f_rest * stride_f + F + i % f_rest] = T(0.f);
  }
  for (int i = threadIdx.x; i < f_rest * clusters; i += kBackwardThreads) {
    gradients[(F + i / clusters) * stride_k + i % clusters] = T(0.f);
  }
  const NormTable norm{table, clusters, static_cast<int>(table_groups(shape, has_norm))};
  fill_norm_table(shape, in.norm, norm, table);
  {
    const int column_groups = clusters / kColumnVector;
    const int f_slices = kBackwardThreads / column_groups, f_slice = threadIdx.x / column_groups;
    const int k0 = threadIdx.x % column_groups * kColumnVector;
    const int f_begin = f_slice < f_slices ? f_slice : F;
    const T* const grad = saved.grad + b * F * K + k0;
    const T* const output = saved.output + b * F * K + k0;
    const bool aligned =
        rows_aligned(saved.grad, K) && rows_aligned(saved.output, K) && k0 + kColumnVector <= K;
    float products[kColumnVector] = {}, bounds[kColumnVector] = {};
#pragma unroll 2
    for (int f = f_begin; f < F; f += f_slices) {
      float g[kColumnVector], y[kColumnVector];
      load_values(grad + int64_t{f} * K, K - k0, aligned, g);
      load_values(output + int64_t{f} * K, K - k0, aligned, y);
#pragma unroll
      for (int i = 0; i < kColumnVector; ++i) {
        products[i] += g[i] * y[i];
        if constexpr (kScaled) bounds[i] = fmaxf(bounds[i], fabsf(g[i]));
      }
    }
    const float product = over_columns<false>(products, scratch, clusters);
    const float bound = kScaled ? over_columns<true>(bounds, scratch, clusters) : 0.f;
    if (threadIdx.x < clusters) {
      const int k = threadIdx.x;
      const float norm_square = k < K ? saved.square_norm[b * K + k] : eps;
      const bool clamped = norm_square < eps;
      const float column_scale = inverse_root(clamped ? eps : norm_square);
      const float column_projection = clamped ? 0.f : product;
      if (slice == 0 && k < K) {
        work.columns[b * 3 * K + k] = column_scale;
        work.columns[(b * 3 + 1) * K + k] = column_projection;
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
#pragma unroll 2
    for (int f = f_begin; f < F; f += f_slices) {
      float g[kColumnVector], y[kColumnVector], c[kColumnVector];
      load_values(grad + int64_t{f} * K, K - k0, aligned, g);
      load_values(output + int64_t{f} * K, K - k0, aligned, y);
      load_values(in.centers + int64_t{f} * K + k0, K - k0, aligned && rows_aligned(in.centers, K),
                  c);
      T* const target = gradients + f * stride_k + k0;
#pragma unroll
      for (int i = 0; i < kColumnVector; i += 2) {
        const T d0 = to_operand((g[i] - y[i] * projection[k0 + i]) * factor[k0 + i], T{});
        const T d1 =
            to_operand((g[i + 1] - y[i + 1] * projection[k0 + i + 1]) * factor[k0 + i + 1], T{});
        store_pair(d0, d1, target + i);
        shifts[i] -= widen(d0) * c[i];
        shifts[i + 1] -= widen(d1) * c[i + 1];
      }
    }
    const float total = over_columns<false>(shifts, scratch, clusters);
    if (threadIdx.x < clusters) shift[threadIdx.x] = total * scale[threadIdx.x];
  }

  // If G divides 8, a row of the lane belongs to the same group in every chunk, as chunks start at
  // multiples of 16; else norm_sums is false.
  const int lane_group = lane_row % norm.groups;
  const bool final = has_norm && in.norm.row_weights == nullptr && plan.norm_sums;
  float by_score[kTilesK][2][2] = {}, by_one[kTilesK][2][2] = {};

#pragma unroll 1
  for (int64_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
    const int rows = rows_of(chunk);
    const int64_t row0 = b * N + chunk * kChunk;
    T* const x = features_of(chunk);
    T* const z = scores_of(chunk);
    if (threadIdx.x < kChunk) {
      attention[threadIdx.x] = threadIdx.x < rows ? widen(in.attention[row0 + threadIdx.x]) : 0.f;
    }
    if (plan.stages == 1) {
      __syncthreads();  // the last chunk's results have been written from the slot
      load(chunk);
    }
    wait_for_copies<0>();
    __syncthreads();
    if (plan.stages > 1 && chunk + 1 < end_chunk) load(chunk + 1);

    // The softmax of every row, and the weights as operands.
#pragma unroll 2
    for (int i0 = warp * 2; i0 < kChunk; i0 += 2 * kBackwardWarps) {
      const int row = i0 + lane / kRowLanes, row_lane = lane % kRowLanes;
      const int group = group_of(chunk * kChunk + row, norm.groups);
      const RowSoftmax<kRowLanes, kPairs> softmax(z + row * stride_k, norm, group, K, row_lane);
      if (row_lane == 0) {
        largest[row] = softmax.row.largest;
        row_scale[row] = softmax.row.scale;
      }
      if (out.features == nullptr) continue;
      float2 values[kPairs];
      float bound = 0;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int k = 2 * (row_lane + kRowLanes * i);
        if (k >= clusters) continue;
        const float2 scales = load_pair(scale + k);
        values[i] = {attention[row] * softmax.p[i].x * scales.x,
                     attention[row] * softmax.p[i].y * scales.y};
        bound = fmaxf(bound, fmaxf(fabsf(values[i].x), fabsf(values[i].y)));
      }
      Scaling scaling;
      if constexpr (kScaled) {
        scaling = scaling_of(warp_maximum<1, kRowLanes>(bound));
        if (row_lane == 0) inverse[row] = scaling.inverse;
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int k = 2 * (row_lane + kRowLanes * i);
        if (k >= clusters) continue;
        store_pair(to_operand(values[i].x * scaling.factor, T{}),
                   to_operand(values[i].y * scaling.factor, T{}), weights + row * stride_k + k);
      }
    }

    // g[n,k] = sum_f features[n,f] d[f,k] + s[k], the gradient of the weights.
    float g[kTilesM][kTilesK][2][4] = {};
#pragma unroll 1
    for (int f = 0; f < f_tiles * kMmaTile; f += M::kDepth) {
      typename M::Left left[kTilesM];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        M::load_left(x + (warp_m * kTilesM + i) * kMmaTile * stride_f + f, stride_f, lane, left[i]);
      }
#pragma unroll
      for (int j = 0; j < kTilesK; ++j) {
        const int tile = warp_n + kWarpsN * j;
        if (tile >= k_tiles) continue;
        typename M::Right right;
        M::load_right(gradients + f * stride_k + tile * kMmaTile, stride_k, lane, right);
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
          multiply_add(T{}, left[i], right[0], g[i][j][0]);
          multiply_add(T{}, left[i], right[1], g[i][j][1]);
        }
      }
    }
    __syncthreads();

    // p in the layout of g, and the lane's parts of d_attention[n] = sum_k p[n,k] g[n,k].
    float p[kTilesM][kTilesK][2][4];
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row) {
        const int row = (warp_m * kTilesM + i) * kMmaTile + half_row * 8 + lane_row;
        const int group = group_of(chunk * kChunk + row, norm.groups);
        const float row_largest = largest[row], row_factor = row_scale[row];
        float part = 0;
#pragma unroll
        for (int j = 0; j < kTilesK; ++j) {
          const int tile = warp_n + kWarpsN * j;
          if (tile >= k_tiles) continue;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int k = tile * kMmaTile + half * 8 + lane_column;
            const float2 y = load_scores(z + row * stride_k, norm, group, k, K);
            const float2 scales = load_pair(scale + k), shifts = load_pair(shift + k);
            float* const gradient = g[i][j][half] + 2 * half_row;
            float* const probability = p[i][j][half] + 2 * half_row;
            gradient[0] = gradient[0] * scales.x + shifts.x;
            gradient[1] = gradient[1] * scales.y + shifts.y;
            probability[0] = __expf(y.x - row_largest) * row_factor;
            probability[1] = __expf(y.y - row_largest) * row_factor;
            part += probability[0] * gradient[0];
            part += probability[1] * gradient[1];
          }
        }
        part = warp_sum<1, 4>(part);
        if (lane % 4 == 0) means[warp_n * kChunk + row] = part;
      }
    }
    __syncthreads();

    // e replaces the scores.
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row) {
        const int row = (warp_m * kTilesM + i) * kMmaTile + half_row * 8 + lane_row;
        float mean = 0;
#pragma unroll
        for (int w = 0; w < kWarpsN; ++w) mean += means[w * kChunk + row];
        if (row >= rows) continue;
        const float weight = attention[row];
        if (warp_n == 0 && lane % 4 == 0) narrow_saturated<T>(mean, out.attention[row0 + row]);
#pragma unroll
        for (int j = 0; j < kTilesK; ++j) {
          const int tile = warp_n + kWarpsN * j;
          if (tile >= k_tiles) continue;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int k = tile * kMmaTile + half * 8 + lane_column;
            T* const at = z + row * stride_k + k;
            const float* const gradient = g[i][j][half] + 2 * half_row;
            const float* const probability = p[i][j][half] + 2 * half_row;
            float2 e{weight * probability[0] * (gradient[0] - mean),
                     weight * probability[1] * (gradient[1] - mean)};
            if (plan.norm_sums) {
              const float2 score = load_pair(at);
              const float* const center = in.norm.values + lane_group * K + k;
              by_score[j][half][0] += k < K ? e.x * (score.x - center[0]) : 0.f;
              by_score[j][half][1] += k + 1 < K ? e.y * (score.y - center[1]) : 0.f;
              by_one[j][half][0] += e.x;
              by_one[j][half][1] += e.y;
            }
            if (final) {
              const float4 entry =
                  *reinterpret_cast<const float4*>(table + lane_group * clusters + k);
              e = {e.x * entry.x, e.y * entry.z};
            }
            T e0, e1;
            narrow(e.x, e0);
            narrow(e.y, e1);
            store_pair(e0, e1, at);
          }
        }
      }
    }

    // d_features[n,f] = sum_k (attention[n] p[n,k] scale[k]) d'[f,k] replaces the features.
    if (out.features != nullptr) {
#pragma unroll 1
      for (int first_tile = warp_n; first_tile < f_tiles; first_tile += kWarpsN * kTilesF) {
        float products[kTilesM][kTilesF][2][4] = {};
#pragma unroll 1
        for (int k = 0; k < clusters; k += M::kDepth) {
          typename M::Left left[kTilesM];
#pragma unroll
          for (int i = 0; i < kTilesM; ++i) {
            M::load_left(weights + (warp_m * kTilesM + i) * kMmaTile * stride_k + k, stride_k, lane,
                         left[i]);
          }
#pragma unroll
          for (int j = 0; j < kTilesF; ++j) {
            const int tile = first_tile + kWarpsN * j;
            if (tile >= f_tiles) continue;
            typename M::Right right;
            M::load_right_transposed(gradients + tile * kMmaTile * stride_k + k, stride_k, lane,
                                     right);
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) {
              multiply_add(T{}, left[i], right[0], products[i][j][0]);
              multiply_add(T{}, left[i], right[1], products[i][j][1]);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
          for (int half_row = 0; half_row < 2; ++half_row) {
            const int row = (warp_m * kTilesM + i) * kMmaTile + half_row * 8 + lane_row;
            const float row_inverse = kScaled ? inverse[row] : 1.f;
#pragma unroll
            for (int j = 0; j < kTilesF; ++j) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const int f = (first_tile + kWarpsN * j) * kMmaTile + half * 8 + lane_column;
                const float* const values = products[i][j][half] + 2 * half_row;
                T d0, d1;
                narrow(values[0] * row_inverse, d0);
                narrow(values[1] * row_inverse, d1);
                T* const at = x + row * stride_f + f;
                if (f + 1 < F) {
                  store_pair(d0, d1, at);
                } else if (f < F) {
                  *at = d0;  // terms beyond F stay 0
                }
              }
            }
          }
        }
      }
    }
    __syncthreads();
    store_chunk(z, stride_k, rows, K, rows_aligned(out.assignment, K), out.assignment + row0 * K);
    if (out.features != nullptr) {
      store_chunk(x, stride_f, rows, F, rows_aligned(out.features, F), out.features + row0 * F);
    }
  }

  if (!plan.norm_sums) return;
  const int64_t part = int64_t{blockIdx.x} * kWarpsM + warp_m;
  float* const sums = work.norm_sums + part * 2 * norm.groups * K + lane_group * K;
#pragma unroll
  for (int j = 0; j < kTilesK; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float score_sum = by_score[j][half][i], sum = by_one[j][half][i];
        // Over the lanes of the same group.
        for (int offset = norm.groups * 4; offset < kWarp; offset *= 2) {
          score_sum += __shfl_xor_sync(0xffffffffu, score_sum, offset);
          sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        }
        const int k = (warp_n + kWarpsN * j) * kMmaTile + half * 8 + lane_column + i;
        if (k < K && lane_row < norm.groups) {
          sums[k] = score_sum;
          sums[norm.groups * K + k] = sum;
        }
      }
    }
  }
}

// The partition of the backward, or warps_m = 0 if the sizes do not fit this device.
template <typename T>
constexpr BackwardPlan plan_backward(const VladShape& shape, bool norm, const Device& device) {
  if (!device.tensor_cores || shape.batch == 0 || shape.rows == 0 || shape.width == 0 ||
      shape.clusters > kMmaClusters) {
    return {};
  }
  struct Choice {
    int warps_m, m_tiles, stages;
  };
  // Videos of few rows take the smallest chunk that holds them, others the largest that fits.
  constexpr bool kLarge = sizeof(T) == 2;  // in TF32 the largest chunk hardly ever fits
  constexpr Choice kChoices[] = {{2, 2, 2}, {1, 2, 2}, {1, 2, 1}, {1, 1, 2}, {1, 1, 1}};
  BackwardPlan plan;
  for (const Choice& choice : kChoices) {
    plan.warps_m = choice.warps_m;
    plan.m_tiles = choice.m_tiles;
    plan.stages = choice.stages;
    const bool small = shape.rows <= plan.chunk() / 2 && plan.chunk() > kMmaTile;
    plan.shared = BackwardShared<T>(shape, norm, plan).size;
    const int tiles_k = kBackwardWarps / plan.warps_m == 4 ? 12 : 16;  // the kernels' kTilesK
    if ((choice.warps_m == 2 && !kLarge) || small || shape.clusters > tiles_k * kMmaTile ||
        plan.shared > device.shared)
      continue;
    plan.chunks = quotient(shape.rows, plan.chunk());
    plan.norm_sums = norm && shape.groups <= 8 && 8 % shape.groups == 0;
    // The number of blocks per video that ends first, if starting one takes as long as two chunks.
    constexpr int64_t kStart = 2;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int64_t slices = 1; slices <= std::min<int64_t>(plan.chunks, 64); ++slices) {
      const int64_t each = quotient(plan.chunks, slices);
      const int64_t rounds =
          quotient(shape.batch * quotient(plan.chunks, each), device.multiprocessors);
      if (rounds * (each + kStart) >= least) continue;
      least = rounds * (each + kStart);
      plan.slices = quotient(plan.chunks, each);
      plan.slice_chunks = each;
    }
    return plan;
  }
  return {};
}

// All gradients but those of the norm. With it, out.assignment holds e, or the gradient itself
// where there are no row weights and plan.norm_sums is set; then work.norm_sums holds
// plan.parts(B).
template <typename T>
cudaError_t launch_vlad_backward_mma(const VladShape& shape, const VladInput<T, float>& in,
                                     const VladSaved<T, float>& saved, double eps,
                                     const VladGradient<T, float>& out, const BackwardPlan& plan,
                                     const BackwardWorkspace<float>& work, cudaStream_t stream) {
  auto kernel =
      plan.m_tiles == 2 ? vlad_backward_mma_kernel<T, 1, 2> : vlad_backward_mma_kernel<T, 1, 1>;
  if constexpr (sizeof(T) == 2) {
    if (plan.warps_m == 2) kernel = vlad_backward_mma_kernel<T, 2, 2>;
  }
  const cudaError_t error =
      launch(kernel, shape.batch * plan.slices, kBackwardThreads, plan.shared, stream, shape, in,
             saved, static_cast<float>(eps), plan,
             BackwardShared<T>(shape, in.norm.values != nullptr, plan), work, out);
  if (error != cudaSuccess) return error;
  return launch_vlad_centers<T>(shape, saved, work.columns, out.centers, stream);
}

}  // namespace gpu
}  // namespace pyseg
