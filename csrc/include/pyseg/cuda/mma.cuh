// The instructions of sm_80 and later that the matrix kernels are made of: asynchronous copies to
// shared memory, and matrix products of a warp with float sums (PTX ISA 8.0, sections 9.7.9.25.3,
// 9.7.14.5 and 9.7.15). Compiled for an older GPU the functions trap; the launchers do not use
// them there.
//
// With g = lane / 4 and t = lane % 4 a lane holds, of the 16 x 8 result of one product, elements
// (g, 2t), (g, 2t + 1), (g + 8, 2t) and (g + 8, 2t + 1).
#pragma once

#include "pyseg/cuda/common.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define PYSEG_SM80(...) __trap()
#else
#define PYSEG_SM80(...) asm volatile(__VA_ARGS__)
#endif

namespace pyseg {
namespace gpu {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory, or writes zeros where `inside` is false.
__device__ inline void copy_16_bytes(void* target, const void* source, bool inside) {
  PYSEG_SM80("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)),
             "l"(source), "r"(inside ? 16 : 0) : "memory");
}

// Closes a group of this thread's copies, which may be empty.
__device__ inline void commit_copies() { PYSEG_SM80("cp.async.commit_group;\n" :: : "memory"); }

// Waits until at most kPending of this thread's latest groups are still under way.
template <int kPending>
__device__ inline void wait_for_copies() {
  PYSEG_SM80("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8. Of
// matrix j a lane gets elements (g, 2t) and (g, 2t + 1), transposed (2t, g) and (2t + 1, g).
template <bool kTransposed>
__device__ inline void load_matrices(const void* row, uint32_t (&result)[4]) {
  if constexpr (kTransposed) {
    PYSEG_SM80("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n" : "=r"(
                   result[0]),
               "=r"(result[1]), "=r"(result[2]),
               "=r"(result[3]) : "r"(shared_address(row)) : "memory");
  } else {
    PYSEG_SM80(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n" : "=r"(result[0]),
        "=r"(result[1]), "=r"(result[2]), "=r"(result[3]) : "r"(shared_address(row)) : "memory");
  }
}

// c += a b for one 16 x 8 result.
__device__ inline void multiply_add(__half, const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    float (&c)[4]) {
  PYSEG_SM80(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n" : "+f"(c[0]),
      "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
      "r"(b[1]));
}
__device__ inline void multiply_add(__nv_bfloat16, const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    float (&c)[4]) {
  PYSEG_SM80(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n" : "+f"(c[0]),
      "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
      "r"(b[1]));
}
__device__ inline void multiply_add(float, const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    float (&c)[4]) {
  PYSEG_SM80(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n" : "+f"(c[0]),
      "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
      "r"(b[1]));
}

// The nearest value that a product takes as it is: of T, or of TF32 for float.
__device__ inline __half to_operand(float value, __half) { return __float2half_rn(value); }
__device__ inline __nv_bfloat16 to_operand(float value, __nv_bfloat16) {
  return __float2bfloat16_rn(value);
}
__device__ inline float to_operand(float value, float) {
  uint32_t bits = 0;
  PYSEG_SM80("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

#undef PYSEG_SM80

// Operands in shared memory, rows of `stride` values. Every function takes the whole warp.
//
// Strides of 8 more than a multiple of 16 (and for float, where a matrix is read along its rows, of
// 4 more) put what a warp reads at once into different banks.
template <typename T>
struct Matrices {
  static constexpr int kDepth = 16;  // terms of one product
  using Left = uint32_t[4];          // 16 x kDepth
  using Right = uint32_t[2][2];      // kDepth x 16, as two of kDepth x 8

  // left(i, j) = source[i][j]
  __device__ static void load_left(const T* source, int stride, int lane, Left& left) {
    load_matrices<false>(source + lane % 16 * stride + lane / 16 * 8, left);
  }
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

// In TF32. What is loaded to the left is rounded here, what is loaded to the right must be already.
template <>
struct Matrices<float> {
  static constexpr int kDepth = 8;
  using Left = uint32_t[4];
  using Right = uint32_t[2][2];

  __device__ static void load_left(const float* source, int stride, int lane, Left& left) {
    const float* const at = source + lane / 4 * stride + lane % 4;
    left[0] = rounded(at[0]);
    left[1] = rounded(at[8 * stride]);
    left[2] = rounded(at[4]);
    left[3] = rounded(at[8 * stride + 4]);
  }
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
  __device__ static void load_right_transposed(const float* source, int stride, int lane,
                                               Right& right) {
    const float* const at = source + lane / 4 * stride + lane % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      right[i][0] = __float_as_uint(at[8 * i * stride]);
      right[i][1] = __float_as_uint(at[8 * i * stride + 4]);
    }
  }

 private:
  __device__ static uint32_t rounded(float value) {
    return __float_as_uint(to_operand(value, float{}));
  }
};

}  // namespace gpu
}  // namespace pyseg
