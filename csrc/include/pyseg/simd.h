// Vector arithmetic compiled for several instruction sets and chosen at run time. The binary itself
// is for the plainest processor: a kernel is a template over the vector width that is inlined into
// one function for each Simd level, of which only that function is compiled for the level.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#define PYSEG_INLINE __attribute__((always_inline)) inline
#if defined(__x86_64__)
#define PYSEG_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define PYSEG_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#endif

namespace pyseg {

enum class Simd { kPortable, kAvx2, kAvx512 };

// The best level of this processor (and of its operating system, which must save the registers).
inline Simd best_simd() {
#if defined(__x86_64__)
  static const Simd best = [] {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx2 ? (avx512 ? Simd::kAvx512 : Simd::kAvx2) : Simd::kPortable;
  }();
  return best;
#else
  return Simd::kPortable;
#endif
}

namespace simd {

// kBytes is the width of a vector: 16 for Simd::kPortable, 32 for kAvx2, 64 for kAvx512. Vectors
// are passed by reference only, since their calling convention differs between the levels.
template <typename T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <typename T, int kBytes>
using Vector = typename VectorOf<T, kBytes>::type;

template <typename T, int kBytes>
constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(T));

// Smallest multiple of the widest vector's lanes that holds `size` values: the row length of
// scratch memory, so that no loop over a row has a remainder.
template <typename T>
constexpr int64_t padded(int64_t size) {
  constexpr int64_t lanes = kLanes<T, 64>;
  return (size + lanes - 1) / lanes * lanes;
}

// Memory for `size` values, zeroed and aligned for the widest vector.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64}))) {
    std::memset(data_.get(), 0, size * sizeof(T));
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

// x = e^x for x <= 0, to 1.5 units in the last place; below -87.3 (subnormal results) exactly 0.
// Range reduction and polynomial of the Cephes library's expf.
template <int kBytes>
PYSEG_INLINE void exp_nonpositive(Vector<float, kBytes>& x) {
  using Float = Vector<float, kBytes>;
  using Int = Vector<int32_t, kBytes>;
  // 1.5 * 2^23: after its addition the lowest bits of the sum are the rounded integer.
  constexpr float kMagic = 12582912.f;
  const Float lowest = Float{} - 87.3f;
  const Int vanishes = x < lowest;
  const Float bounded = vanishes ? lowest : x;  // a NaN stays
  const Float shifted = bounded * 1.44269504f + kMagic;
  const Float whole = shifted - kMagic;
  const Float r = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const Int exponent = ((Int)shifted << 23) + 0x3f800000;
  x = vanishes ? Float{} : p * (Float)exponent;
}

template <int kBytes>
PYSEG_INLINE void exp_nonpositive(Vector<double, kBytes>& x) {
  for (int64_t i = 0; i < kLanes<double, kBytes>; ++i) x[i] = std::exp(x[i]);
}

template <typename T, int kBytes>
PYSEG_INLINE T sum(const Vector<T, kBytes>& x) {
  T result = x[0];
  for (int64_t i = 1; i < kLanes<T, kBytes>; ++i) result += x[i];
  return result;
}

template <typename T, int kBytes>
PYSEG_INLINE T maximum(const Vector<T, kBytes>& x) {
  T result = x[0];
  for (int64_t i = 1; i < kLanes<T, kBytes>; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

template <typename T, int kBytes>
PYSEG_INLINE Vector<T, kBytes>& at(T* aligned) {
  return *reinterpret_cast<Vector<T, kBytes>*>(aligned);
}
template <typename T, int kBytes>
PYSEG_INLINE const Vector<T, kBytes>& at(const T* aligned) {
  return *reinterpret_cast<const Vector<T, kBytes>*>(aligned);
}

// row = softmax(row), of `size` values (a multiple of the lanes) of which padding is -infinity.
template <typename T, int kBytes>
PYSEG_INLINE void softmax(T* row, int64_t size) {
  using V = Vector<T, kBytes>;
  constexpr int64_t kStep = kLanes<T, kBytes>;
  V largest = at<T, kBytes>(row);
  for (int64_t k = kStep; k < size; k += kStep) {
    const V& x = at<T, kBytes>(row + k);
    largest = x > largest ? x : largest;
  }
  const T shift = maximum<T, kBytes>(largest);
  V total = {};
  for (int64_t k = 0; k < size; k += kStep) {
    V& x = at<T, kBytes>(row + k);
    x -= shift;
    exp_nonpositive<kBytes>(x);
    total += x;
  }
  const T scale = 1 / sum<T, kBytes>(total);
  for (int64_t k = 0; k < size; k += kStep) at<T, kBytes>(row + k) *= scale;
}

// C = A B, or C += A B: a small matrix product whose operands lie in the first or second cache.
// Sums over depth are taken in blocks of kDepth: a tile's part of B then lies in the first cache,
// and a long sum has the rounding error of its blocks.
constexpr int64_t kDepth = 128;

template <typename T>
struct Product {
  int64_t rows, columns, depth;  // columns: a multiple of the lanes
  const T* a;                    // (rows, depth), of any strides
  int64_t a_row, a_depth;
  const T* b;  // (depth, columns), aligned rows of length b_row
  int64_t b_row;
  T* c;  // (rows, columns), aligned rows of length c_row
  int64_t c_row;
  bool accumulate;
};

// One register tile of C: kRows x kVectors accumulators, filled by outer products.
template <typename T, int kBytes, int kRows, int kVectors>
PYSEG_INLINE void multiply_tile(const Product<T>& p, int64_t row, int64_t column) {
  using V = Vector<T, kBytes>;
  constexpr int64_t kStep = kLanes<T, kBytes>;
  T* const c = p.c + row * p.c_row + column;
  V sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sums[i][j] = V{};
  }
  const T* a = p.a + row * p.a_row;
  const T* b = p.b + column;
  for (int64_t d = 0; d < p.depth; ++d, a += p.a_depth, b += p.b_row) {
    V right[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) right[j] = at<T, kBytes>(b + j * kStep);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const T left = a[i * p.a_row];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sums[i][j] += right[j] * left;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      V& result = at<T, kBytes>(c + i * p.c_row + j * kStep);
      result = p.accumulate ? result + sums[i][j] : sums[i][j];
    }
  }
}

template <typename T, int kBytes, int kVectors>
PYSEG_INLINE void multiply_panel(const Product<T>& p, int64_t column) {
  int64_t row = 0;
  for (; row + 6 <= p.rows; row += 6) multiply_tile<T, kBytes, 6, kVectors>(p, row, column);
  if (row + 4 <= p.rows) multiply_tile<T, kBytes, 4, kVectors>(p, row, column), row += 4;
  if (row + 2 <= p.rows) multiply_tile<T, kBytes, 2, kVectors>(p, row, column), row += 2;
  if (row < p.rows) multiply_tile<T, kBytes, 1, kVectors>(p, row, column);
}

// 6 x 4 accumulators are 24 of the 32 AVX-512 registers, 6 x 2 are 12 of the 16 others.
template <typename T, int kBytes>
PYSEG_INLINE void multiply_block(const Product<T>& p) {
  constexpr int64_t kStep = kLanes<T, kBytes>;
  constexpr int64_t kWidest = kBytes == 64 ? 4 : 2;
  const int64_t vectors = p.columns / kStep;
  if (vectors == 0) return;
  const int64_t panels = (vectors + kWidest - 1) / kWidest;
  const int64_t width = (vectors + panels - 1) / panels;  // even panels: 9 vectors are 3 + 3 + 3
  for (int64_t v = 0; v < vectors; v += width) {
    const int64_t column = v * kStep;
    switch (std::min(width, vectors - v)) {
      case 1:
        multiply_panel<T, kBytes, 1>(p, column);
        break;
      case 2:
        multiply_panel<T, kBytes, 2>(p, column);
        break;
      case 3:
        if constexpr (kWidest > 2) multiply_panel<T, kBytes, 3>(p, column);
        break;
      default:
        if constexpr (kWidest > 2) multiply_panel<T, kBytes, 4>(p, column);
    }
  }
}

template <typename T, int kBytes>
PYSEG_INLINE void multiply(const Product<T>& p) {
  Product<T> block = p;
  int64_t done = 0;
  do {  // once for depth 0 too: C = 0
    block.depth = std::min(kDepth, p.depth - done);
    multiply_block<T, kBytes>(block);
    block.a += block.depth * p.a_depth;
    block.b += block.depth * p.b_row;
    block.accumulate = true;
    done += block.depth;
  } while (done < p.depth);
}

// The levels as types: the vector width, and functions compiled for that level. run<Kernel> inlines
// the always-inline Kernel::run<Level>; multiply is a function that the kernels of all types share.
struct Portable {
  static constexpr int kBytes = 16;
  template <typename T>
  static void multiply(const Product<T>& p) {
    simd::multiply<T, kBytes>(p);
  }
  template <typename Kernel, typename... Arguments>
  static void run(const Arguments&... arguments) {
    Kernel::template run<Portable>(arguments...);
  }
};
#if defined(__x86_64__)
struct Avx2 {
  static constexpr int kBytes = 32;
  template <typename T>
  PYSEG_TARGET_AVX2 static void multiply(const Product<T>& p) {
    simd::multiply<T, kBytes>(p);
  }
  template <typename Kernel, typename... Arguments>
  PYSEG_TARGET_AVX2 static void run(const Arguments&... arguments) {
    Kernel::template run<Avx2>(arguments...);
  }
};
struct Avx512 {
  static constexpr int kBytes = 64;
  template <typename T>
  PYSEG_TARGET_AVX512 static void multiply(const Product<T>& p) {
    simd::multiply<T, kBytes>(p);
  }
  template <typename Kernel, typename... Arguments>
  PYSEG_TARGET_AVX512 static void run(const Arguments&... arguments) {
    Kernel::template run<Avx512>(arguments...);
  }
};
#endif

template <typename Kernel, typename... Arguments>
void run(Simd level, const Arguments&... arguments) {
  switch (level) {
#if defined(__x86_64__)
    case Simd::kAvx512:
      return Avx512::run<Kernel>(arguments...);
    case Simd::kAvx2:
      return Avx2::run<Kernel>(arguments...);
#endif
    default:
      return Portable::run<Kernel>(arguments...);
  }
}

}  // namespace simd
}  // namespace pyseg
