// The VLAD aggregation on tensor cores: for __half and __nv_bfloat16, and for float in TF32. The
// products' operands are rounded to T (TF32 for float), as in every matrix product of PyTorch; all
// other arithmetic is in float.
//
// Features are read once, and the softmax is computed where its weights are used: nothing of size
// (B, T, G, K) is written but the gradient of the assignment. Sizes that are no multiple of a
// product's are padded with zeros; where rows do not start on the boundaries of vectors, loads of
// single values replace those. This file has what vlad_mma_forward.cuh and vlad_mma_backward.cuh
// share.
#pragma once

#include <cstring>
#include <type_traits>

#include "pyseg/cuda/assignment.cuh"
#include "pyseg/cuda/common.cuh"
#include "pyseg/cuda/mma.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

constexpr int kMmaTile = 16;  // sizes are padded to multiples of it

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

// Of the norm's table. Without normalisation all rows belong to one group, with scores unchanged:
// the same code serves both.
__host__ __device__ constexpr int64_t table_groups(const VladShape& shape, bool norm) {
  return norm ? shape.groups : 1;
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

}  // namespace gpu
}  // namespace pyseg
