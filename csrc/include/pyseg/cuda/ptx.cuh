// The instructions of sm_80 and later that the matrix kernels use: asynchronous copies to shared
// memory, and matrix products of a warp with float sums (PTX ISA 8.0, sections 9.7.9.25.3, 9.7.14.5
// and 9.7.15), and a fast power of two. Compiled for an older GPU the functions trap; the launchers
// do not use them there. The tests replace them with functions that run on a CPU
// (tests/cpp/cuda_emulation).
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

// The dynamic shared memory of the launch.
__device__ inline unsigned char* dynamic_shared_memory() {
  extern __shared__ uint4 dynamic_shared[];
  return reinterpret_cast<unsigned char*>(dynamic_shared);
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory, or writes zeros where `inside` is false, kOffset bytes behind
// both addresses, but only if `wanted`: an instruction with a predicate and constant offsets, where
// the compiler would make a branch and two more addresses.
template <int kOffset>
__device__ inline void copy_16_bytes(bool wanted, void* target, const void* source, bool inside) {
  PYSEG_SM80(
      "{.reg .pred wanted; setp.ne.b32 wanted, %0, 0;\n"
      "@wanted cp.async.cg.shared.global [%1 + %4], [%2 + %4], 16, %3;}\n" ::"r"(
          static_cast<int>(wanted)),
      "r"(shared_address(target)), "l"(__cvta_generic_to_global(source)), "r"(inside ? 16 : 0),
      "n"(kOffset) : "memory");
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

// To the nearest value of TF32, ties away from zero.
__device__ inline float round_tf32(float value) {
  uint32_t bits = 0;
  PYSEG_SM80("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

#undef PYSEG_SM80

// The value itself, unknown to the compiler: it cannot move what depends on it out of a loop, where
// it would take registers.
__device__ inline int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// 2^value within two units in the last place; results below the smallest normal number become 0.
__device__ inline float approximate_exp2(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

}  // namespace gpu
}  // namespace pyseg
