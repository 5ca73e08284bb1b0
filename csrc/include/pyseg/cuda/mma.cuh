// Operands of a warp's matrix products, from shared memory to the registers that the instructions
// of ptx.cuh take.
#pragma once

#include <cstring>
#include <type_traits>

#include "pyseg/cuda/common.cuh"
#include "pyseg/cuda/ptx.cuh"

namespace pyseg {
namespace gpu {

template <typename Pair>
__device__ inline uint32_t bits_of(const Pair& pair) {
  uint32_t bits;
  static_assert(sizeof(bits) == sizeof(pair));
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// Rounds to the type of a product's operands: T, or TF32 for float.
__device__ inline __half to_operand(float value, __half) { return __float2half_rn(value); }
__device__ inline __nv_bfloat16 to_operand(float value, __nv_bfloat16) {
  return __float2bfloat16_rn(value);
}
__device__ inline float to_operand(float value, float) { return round_tf32(value); }
// Two adjacent operands, by one instruction.
__device__ inline uint32_t to_operands(float first, float second, __half) {
  return bits_of(__floats2half2_rn(first, second));
}
__device__ inline uint32_t to_operands(float first, float second, __nv_bfloat16) {
  return bits_of(__floats2bfloat162_rn(first, second));
}

// 16 bytes of operands.
template <typename T>
__device__ inline uint4 to_operands(const float* values, T) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      words[i] = to_operands(values[2 * i], values[2 * i + 1], T{});
    } else {
      words[i] = __float_as_uint(to_operand(values[i], T{}));
    }
  }
  return {words[0], words[1], words[2], words[3]};
}
__device__ inline float2 widen_pair(uint32_t bits, __half) {
  __half values[2];
  memcpy(values, &bits, sizeof(bits));
  return {widen(values[0]), widen(values[1])};
}
__device__ inline float2 widen_pair(uint32_t bits, __nv_bfloat16) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
// The values of type T in 16 bytes.
template <typename T>
__device__ inline void widen(const uint4& bits, T, float* values) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      const float2 pair = widen_pair(words[i], T{});
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    } else {
      values[i] = __uint_as_float(words[i]);
    }
  }
}

// Operands in shared memory, rows of `stride` values. Every function takes the whole warp.
//
// Strides of 8 more than a multiple of 16 avoid bank conflicts.
template <typename T>
struct Matrices {
  static constexpr int kDepth = 16;  // terms of one product
  using Left = uint32_t[4];          // 16 x kDepth
  using Right = uint32_t[2][2];      // kDepth x 16, as two of kDepth x 8

  // A register of a right operand of ones.
  static constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00 : 0x3f803f80;

  // left(i, j) = source[j][i]
  __device__ static void load_left_transposed(const T* source, int stride, int lane, Left& left) {
    const int row = lane % 8 + lane / 16 * 8, column = lane / 8 % 2 * 8;
    load_matrices<true>(source + row * stride + column, left);
  }
  // right(i, j) = source[i][j]
  __device__ static void load_right(const T* source, int stride, int lane, Right& right) {
    load_both<true>(source + lane % 16 * stride + lane / 16 * 8, right);
  }
  // right(i, j) = source[j][i]
  __device__ static void load_right_transposed(const T* source, int stride, int lane,
                                               Right& right) {
    const int row = lane % 8 + lane / 16 * 8, column = lane / 8 % 2 * 8;
    load_both<false>(source + row * stride + column, right);
  }

 private:
  template <bool kTransposed>
  __device__ static void load_both(const T* row, Right& right) {
    uint32_t values[4];
    load_matrices<kTransposed>(row, values);
    right[0][0] = values[0];
    right[0][1] = values[1];
    right[1][0] = values[2];
    right[1][1] = values[3];
  }
};

// In TF32. Left operands are rounded here, right operands must be rounded already.
template <>
struct Matrices<float> {
  static constexpr int kDepth = 8;
  using Left = uint32_t[4];
  using Right = uint32_t[2][2];
  static constexpr uint32_t kOnes = 0x3f800000;

  __device__ static void load_left_transposed(const float* source, int stride, int lane,
                                              Left& left) {
    const float* const at = source + lane % 4 * stride + lane / 4;
    left[0] = rounded(at[0]);
    left[1] = rounded(at[8]);
    left[2] = rounded(at[4 * stride]);
    left[3] = rounded(at[4 * stride + 8]);
  }
  __device__ static void load_right(const float* source, int stride, int lane, Right& right) {
    const float* const at = source + lane % 4 * stride + lane / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      right[i][0] = __float_as_uint(at[8 * i]);
      right[i][1] = __float_as_uint(at[4 * stride + 8 * i]);
    }
  }

 private:
  __device__ static uint32_t rounded(float value) {
    return __float_as_uint(to_operand(value, float{}));
  }
};

}  // namespace gpu
}  // namespace pyseg
