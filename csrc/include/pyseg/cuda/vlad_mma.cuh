// The VLAD aggregation on tensor cores: for __half and __nv_bfloat16, and for float in TF32. The
// products' operands are rounded to T (TF32 for float), as in every matrix product of PyTorch; all
// other arithmetic is in float.
//
// A block owns rows of one video and processes them in chunks that asynchronous copies prefetch
// into shared memory, so that features and assignment are read once. Some lanes of a warp compute a
// row's softmax; its weights go to shared memory as operands. K is at most 256. Sizes that are no
// multiple of 16 are padded in shared memory; where rows do not start on 16-byte boundaries, plain
// loads replace the asynchronous copies.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "pyseg/cuda/assignment.cuh"
#include "pyseg/cuda/common.cuh"
#include "pyseg/cuda/mma.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

constexpr int kMmaTile = 16;       // sizes are padded to multiples of it
constexpr int kMmaClusters = 256;  // the kernels' limit of K

__host__ __device__ constexpr int padded(int64_t size) {
  return static_cast<int>((size + kMmaTile - 1) / kMmaTile * kMmaTile);
}

// Offsets of arrays in a block's shared memory, each on a 16-byte boundary.
struct SharedLayout {
  template <typename A>
  __host__ __device__ constexpr int take(int64_t count) {
    const int64_t start = size;
    size += (count * static_cast<int64_t>(sizeof(A)) + 15) / 16 * 16;
    return static_cast<int>(start);
  }
  int64_t size = 0;
};

// The batch normalisation of a group's scores as y = score scale + shift. Without normalisation all
// rows belong to one group with y = score: the same code serves both.
struct NormTable {
  const float2* values;  // (groups, stride): scale and shift
  int stride;
  int groups;
};

__host__ __device__ constexpr int64_t table_groups(const VladShape& shape, bool norm) {
  return norm ? shape.groups : 1;
}

// Fills the table. Every thread of the block takes part; a barrier follows.
__device__ inline void fill_norm_table(const VladShape& shape, const VladNorm<float>& norm,
                                       const NormTable& table, float2* entries) {
  const int clusters = static_cast<int>(shape.clusters);
  const int plane = static_cast<int>(shape.groups) * clusters;
  for (int i = threadIdx.x; i < table.groups * table.stride; i += blockDim.x) {
    const int g = i / table.stride, k = i % table.stride;
    float2 entry{1, 0};
    if (norm.values != nullptr && k < clusters) {
      const float* const values = norm.values + g * clusters + k;
      entry.x = values[plane] * values[2 * plane];
      entry.y = values[3 * plane] - values[0] * entry.x;
    }
    entries[i] = entry;
  }
}

// Two adjacent values, aligned to a pair.
template <typename T>
using PairBits = std::conditional_t<sizeof(T) == 2, uint32_t, uint2>;
template <typename T>
__device__ inline float2 load_pair(const T* source) {
  const auto bits = *reinterpret_cast<const PairBits<T>*>(source);
  T values[2];
  memcpy(values, &bits, sizeof(bits));
  return {widen(values[0]), widen(values[1])};
}
template <typename T>
__device__ inline void store_pair(T first, T second, T* result) {
  const T values[2] = {first, second};
  PairBits<T> bits;
  memcpy(&bits, values, sizeof(bits));
  *reinterpret_cast<PairBits<T>*>(result) = bits;
}

// The scores y[k], y[k + 1] of a row; -inf from K on, so that their softmax is 0.
template <typename T>
__device__ inline float2 load_scores(const T* row, const NormTable& norm, int group, int k,
                                     int clusters) {
  const float2 score = load_pair(row + k);
  const float4 entry = *reinterpret_cast<const float4*>(norm.values + group * norm.stride + k);
  float2 y{score.x * entry.x + entry.y, score.y * entry.z + entry.w};
  if (k >= clusters) y.x = -INFINITY;
  if (k + 1 >= clusters) y.y = -INFINITY;
  return y;
}

// The softmax of a row by kRowLanes lanes, 16 or 32, each of which takes kPairs pairs: clusters
// 2 lane + 2 kRowLanes i and the next.
template <int kRowLanes, int kPairs>
struct RowSoftmax {
  template <typename T>
  __device__ RowSoftmax(const T* scores, const NormTable& norm, int group, int clusters, int lane) {
    row.largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int k = 2 * (lane + kRowLanes * i);
      p[i] = k < clusters ? load_scores(scores, norm, group, k, clusters)
                          : float2{-INFINITY, -INFINITY};
      row.largest = fmaxf(row.largest, fmaxf(p[i].x, p[i].y));
    }
    row.largest = warp_maximum<1, kRowLanes>(row.largest);
    float total = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      p[i] = {__expf(p[i].x - row.largest), __expf(p[i].y - row.largest)};
      total += p[i].x + p[i].y;
    }
    row.scale = 1.f / warp_sum<1, kRowLanes>(total);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) p[i] = {p[i].x * row.scale, p[i].y * row.scale};
  }
  Row<float> row;
  float2 p[kPairs];
};

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
      (copy_16_bytes_if<kIndices * kStep* static_cast<int>(sizeof(T))>(
           first + kIndices * kStep < width, target + first, source + first, inside),
       ...);
    };
    copy(std::make_integer_sequence<int, kCopies>{});
  } else {
#pragma unroll 1
    for (int i = lane; i < width; i += kLanes) target[i] = inside ? source[i] : T(0.f);
  }
}

// Starts the copy of `rows` rows of `width` values, `source_stride` apart, into `chunk` rows of
// `stride` in shared memory; the rest of the chunk becomes 0.
template <typename T>
__device__ inline void load_chunk(const T* source, int64_t source_stride, int rows, int width,
                                  bool aligned, T* target, int stride, int chunk) {
  if (aligned) {
    constexpr int kPerCopy = sizeof(uint4) / sizeof(T);
    const int pieces = width / kPerCopy;
#pragma unroll 1
    for (int i = threadIdx.x; i < chunk * pieces; i += blockDim.x) {
      const int row = i / pieces, piece = i % pieces * kPerCopy;
      const bool inside = row < rows;
      copy_16_bytes(target + row * stride + piece,
                    inside ? source + row * source_stride + piece : source, inside);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < chunk * width; i += blockDim.x) {
      const int row = i / width, column = i % width;
      target[row * stride + column] = row < rows ? source[row * source_stride + column] : T(0.f);
    }
  }
}

// Writes `rows` rows back.
template <typename T>
__device__ inline void store_chunk(const T* source, int stride, int rows, int width, bool aligned,
                                   T* target) {
  if (aligned) {
    constexpr int kPerCopy = sizeof(uint4) / sizeof(T);
    const int pieces = width / kPerCopy;
    for (int i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
      const int row = i / pieces, piece = i % pieces * kPerCopy;
      *reinterpret_cast<uint4*>(target + int64_t{row} * width + piece) =
          *reinterpret_cast<const uint4*>(source + row * stride + piece);
    }
  } else {
    for (int i = threadIdx.x; i < rows * width; i += blockDim.x) {
      const int row = i / width, column = i % width;
      target[int64_t{row} * width + column] = source[row * stride + column];
    }
  }
}

}  // namespace gpu
}  // namespace pyseg
