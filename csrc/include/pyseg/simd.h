// Vector arithmetic compiled for several instruction sets and chosen at run time. The binary itself
// targets the baseline processor: a kernel is a template over the vector width, inlined into one
// function per Simd level, and only that function is compiled for its level.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "pyseg/float16.h"

#if defined(__x86_64__)
#include <immintrin.h>

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
// scratch memory, so that loops over a row have no remainder and rows are aligned to cache lines.
template <typename T, int kBytes = 64>
constexpr int64_t padded(int64_t size) {
  constexpr int64_t lanes = kLanes<T, kBytes>;
  return (size + lanes - 1) / lanes * lanes;
}

// Memory for `size` values, not initialised, aligned for the widest vector.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64}))) {}
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
  // 1.5 * 2^23: adding it leaves the rounded integer in the lowest bits of the sum.
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
PYSEG_INLINE Vector<T, kBytes>& at(T* aligned) {
  return *reinterpret_cast<Vector<T, kBytes>*>(aligned);
}
template <typename T, int kBytes>
PYSEG_INLINE const Vector<T, kBytes>& at(const T* aligned) {
  return *reinterpret_cast<const Vector<T, kBytes>*>(aligned);
}

// A vector of values of type T as stored in memory: 16-bit floats as their bits.
template <typename T, int kBytes>
using Stored = std::conditional_t<std::is_same_v<T, Accumulate<T>>, Vector<Accumulate<T>, kBytes>,
                                  Vector<uint16_t, kBytes / 2>>;

// Conversions from a stored vector to one of Accumulate<T>, whose width is kBytes, and back.
template <int kBytes, typename T>
PYSEG_INLINE void widen_lanes(const Stored<T, kBytes>& stored, T,
                              Vector<Accumulate<T>, kBytes>& result) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    result = stored;
  } else {
    float16_detail::widen(__builtin_convertvector(stored, Vector<uint32_t, kBytes>), result, T{});
  }
}

template <int kBytes, typename T>
PYSEG_INLINE void narrow_lanes(const Vector<Accumulate<T>, kBytes>& source, T,
                               Stored<T, kBytes>& stored) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    stored = source;
  } else {
    Vector<uint32_t, kBytes> wide;
    float16_detail::narrow(source, wide, T{});
    stored = __builtin_convertvector(wide, Vector<uint16_t, kBytes / 2>);
  }
}

template <int kBytes, typename T>
PYSEG_INLINE void load(const T* source, Vector<Accumulate<T>, kBytes>& result) {
  Stored<T, kBytes> stored;
  std::memcpy(&stored, source, sizeof(stored));
  widen_lanes<kBytes>(stored, T{}, result);
}

template <int kBytes, typename T>
PYSEG_INLINE void store(const Vector<Accumulate<T>, kBytes>& source, T* result) {
  Stored<T, kBytes> stored;
  narrow_lanes<kBytes>(source, T{}, stored);
  std::memcpy(result, &stored, sizeof(stored));
}

// Copies `count` values, fewer than kLimit (a power of 2), in a few moves of fixed length.
template <int64_t kLimit, typename T>
PYSEG_INLINE void copy_few(const T* source, int64_t count, T* result) {
  if constexpr (kLimit > 1) {
    constexpr int64_t kSize = kLimit / 2;
    if ((count & kSize) != 0) {
      std::memcpy(result, source, kSize * sizeof(T));
      source += kSize;
      result += kSize;
    }
    copy_few<kSize>(source, count, result);
  }
}

#if defined(__x86_64__) && !defined(__clang__)
// Masked loads and stores of the first lanes in AVX-512. Values copied in several moves could be
// read as one vector only after the stores retire, which takes as long as four vectors. The
// builtins are used instead of intrinsics, as those are functions of their level and cannot be
// called from a template that is not yet inlined into one.
#define PYSEG_FIRST_LANES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"
PYSEG_INLINE void load_first(const float* source, int64_t count, Vector<float, 64>& lanes) {
  lanes = __builtin_ia32_loadups512_mask(source, lanes, static_cast<uint16_t>((1 << count) - 1));
}
PYSEG_INLINE void load_first(const double* source, int64_t count, Vector<double, 64>& lanes) {
  lanes = __builtin_ia32_loadupd512_mask(source, lanes, static_cast<uint8_t>((1 << count) - 1));
}
PYSEG_INLINE void load_first(const void* source, int64_t count, Vector<uint16_t, 32>& lanes) {
  using Short = Vector<int16_t, 32>;
  lanes = (Vector<uint16_t, 32>)__builtin_ia32_loaddquhi256_mask(
      static_cast<const int16_t*>(source), (Short)lanes, static_cast<uint16_t>((1 << count) - 1));
}
PYSEG_INLINE void store_first(const Vector<float, 64>& lanes, int64_t count, float* result) {
  __builtin_ia32_storeups512_mask(result, lanes, static_cast<uint16_t>((1 << count) - 1));
}
PYSEG_INLINE void store_first(const Vector<double, 64>& lanes, int64_t count, double* result) {
  __builtin_ia32_storeupd512_mask(result, lanes, static_cast<uint8_t>((1 << count) - 1));
}
PYSEG_INLINE void store_first(const Vector<uint16_t, 32>& lanes, int64_t count, void* result) {
  __builtin_ia32_storedquhi256_mask(static_cast<int16_t*>(result), (Vector<int16_t, 32>)lanes,
                                    static_cast<uint16_t>((1 << count) - 1));
}
#pragma GCC diagnostic pop
#endif

// Loads and stores at a row's end: the first min(count, lanes) lanes; load sets the others to
// `fill`. kPartial = false skips the check in a loop over whole vectors.
template <int kBytes, bool kPartial = true, typename T>
PYSEG_INLINE void load(const T* source, int64_t count, Accumulate<T> fill,
                       Vector<Accumulate<T>, kBytes>& result) {
  constexpr int64_t kStep = kLanes<Accumulate<T>, kBytes>;
  T some[kStep];
  if (kPartial && count < kStep) {
#if defined(PYSEG_FIRST_LANES)
    if constexpr (kBytes == 64) {
      Stored<T, kBytes> stored;
      result = Vector<Accumulate<T>, kBytes>{} + fill;
      narrow_lanes<kBytes>(result, T{}, stored);
      load_first(source, count, stored);
      widen_lanes<kBytes>(stored, T{}, result);
      return;
    }
#endif
    narrow(fill, some[0]);
    std::fill_n(some + 1, kStep - 1, some[0]);
    copy_few<kStep>(source, count, some);
    source = some;
  }
  load<kBytes>(source, result);
}

template <int kBytes, typename T>
PYSEG_INLINE void store(const Vector<Accumulate<T>, kBytes>& source, int64_t count, T* result) {
  constexpr int64_t kStep = kLanes<Accumulate<T>, kBytes>;
#if defined(PYSEG_FIRST_LANES)
  if constexpr (kBytes == 64) {
    if (count < kStep) {
      Stored<T, kBytes> stored;
      narrow_lanes<kBytes>(source, T{}, stored);
      return store_first(stored, count, result);
    }
  }
#endif
  T some[kStep];
  store<kBytes>(source, count < kStep ? some : result);
  if (count < kStep) copy_few<kStep>(some, count, result);
}

// Selects the lanes `kLane` of the concatenation of a and b.
template <typename T, int kBytes, int... kLane>
PYSEG_INLINE void shuffle(const Vector<T, kBytes>& a, const Vector<T, kBytes>& b,
                          Vector<T, kBytes>& result) {
#if defined(__clang__)
  result = __builtin_shufflevector(a, b, kLane...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  result = __builtin_shuffle(a, b, Vector<Index, kBytes>{kLane...});
#endif
}

// x[i] = x[i ^ kStep]
template <typename T, int kBytes, int kStep, int... kLane>
PYSEG_INLINE void swap_lanes(const Vector<T, kBytes>& x, Vector<T, kBytes>& result,
                             std::integer_sequence<int, kLane...>) {
  shuffle<T, kBytes, (kLane ^ kStep)...>(x, x, result);
}

// The sum and the maximum of all lanes, by halves.
template <typename T, int kBytes, int kStep = kLanes<T, kBytes> / 2>
PYSEG_INLINE T sum(const Vector<T, kBytes>& x) {
  using Lanes = std::make_integer_sequence<int, kLanes<T, kBytes>>;
  Vector<T, kBytes> other;
  swap_lanes<T, kBytes, kStep>(x, other, Lanes{});
  other += x;
  if constexpr (kStep > 1) return sum<T, kBytes, kStep / 2>(other);
  return other[0];
}

template <typename T, int kBytes, int kStep = kLanes<T, kBytes> / 2>
PYSEG_INLINE T maximum(const Vector<T, kBytes>& x) {
  using Lanes = std::make_integer_sequence<int, kLanes<T, kBytes>>;
  Vector<T, kBytes> other;
  swap_lanes<T, kBytes, kStep>(x, other, Lanes{});
  other = x > other ? x : other;
  if constexpr (kStep > 1) return maximum<T, kBytes, kStep / 2>(other);
  return other[0];
}

// One step of a transposition: two rows exchange blocks of kStep lanes.
template <typename T, int kBytes, int kStep, int... kLane>
PYSEG_INLINE void exchange(Vector<T, kBytes>& a, Vector<T, kBytes>& b,
                           std::integer_sequence<int, kLane...>) {
  constexpr int kSize = kLanes<T, kBytes>;
  Vector<T, kBytes> low, high;
  shuffle<T, kBytes, ((kLane & kStep) == 0 ? kLane : kSize + kLane - kStep)...>(a, b, low);
  shuffle<T, kBytes, ((kLane & kStep) == 0 ? kLane + kStep : kSize + kLane)...>(a, b, high);
  a = low;
  b = high;
}

// Transposes a square of as many rows as there are lanes.
template <typename T, int kBytes, int kStep = kLanes<T, kBytes> / 2>
PYSEG_INLINE void transpose(Vector<T, kBytes>* rows) {
  constexpr int kSize = kLanes<T, kBytes>;
#pragma GCC unroll 16
  for (int i = 0; i < kSize; ++i) {
    if ((i & kStep) != 0) continue;
    exchange<T, kBytes, kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kSize>{});
  }
  if constexpr (kStep > 1) transpose<T, kBytes, kStep / 2>(rows);
}

// C = A B, or C += A B: a small matrix product whose operands fit the L1 or L2 cache. Sums over
// depth are taken in blocks of kDepth, so that a tile's part of B fits the L1 cache, and to reduce
// rounding errors.
constexpr int64_t kDepth = 128;

// A range of memory to prefetch, from `next` to `end`, then `more` ranges of the same length, each
// `gap` bytes after the end of the previous one.
struct Lines {
  const char *next = nullptr, *end = nullptr;
  int64_t more = 0, length = 0, gap = 0;

  Lines() = default;
  template <typename T>
  Lines(const T* data, int64_t size)
      : next(reinterpret_cast<const char*>(data)),
        end(reinterpret_cast<const char*>(data + size)) {}
  // The first `columns` of rows of length `row`.
  template <typename T>
  Lines(const T* data, int64_t rows, int64_t columns, int64_t row)
      : Lines(data, columns == row ? rows * row : std::min(rows, int64_t{1}) * columns) {
    if (columns == row || rows == 0) return;
    more = rows - 1;
    length = end - next;
    gap = (row - columns) * static_cast<int64_t>(sizeof(T));
  }

  // One line, endlessly repeated.
  static Lines repeat(const void* data) {
    Lines lines(static_cast<const char*>(data), 1);
    lines.more = std::numeric_limits<int64_t>::max();
    lines.length = 1;
    lines.gap = -1;
    return lines;
  }

  int64_t bytes() const { return end - next + more * length; }

  // Moves to the next range; returns false if there is none.
  bool advance() {
    if (more == 0) return false;
    --more;
    next = end + gap;
    end = next + length;
    return true;
  }
};

template <typename T>
struct Product {
  int64_t rows, columns, depth;
  const T* a;  // (rows, depth), of any strides
  int64_t a_row, a_depth;
  const T* b;  // (depth, columns), aligned rows of length b_row that are padded to whole vectors
  int64_t b_row;
  T* c;  // (rows, columns), rows of length c_row
  int64_t c_row;
  bool accumulate;
  // Memory that is needed after the product, in this order. The product prefetches it into the L2
  // cache: a range or a part of one with each tile.
  Lines ahead[3] = {};

  // Set by multiply from `ahead`: the lines to prefetch now, and the bytes per step in depth. An
  // even pace avoids bursts that the product would have to wait for.
  Lines* lines = nullptr;
  int64_t pace = 1;
};

// One register tile of C: kRows x kVectors accumulators, filled by outer products.
template <typename T, int kBytes, int kRows, int kVectors>
PYSEG_INLINE void multiply_tile(Product<T>& p, int64_t row, int64_t column) {
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
  const char* next = p.lines->next;
  const int64_t pace = p.pace;
  // On a core shared by two threads every instruction beside the arithmetic counts: two steps share
  // some, and a tile may prefetch past the end of its range.
#pragma GCC unroll 2
  for (int64_t d = 0; d < p.depth; ++d, a += p.a_depth, b += p.b_row) {
    __builtin_prefetch(next, 0, 2);
    next += pace;
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
  p.lines->next = next;
  if (next >= p.lines->end && !p.lines->advance()) ++p.lines;
  // A tile that is wider than the rest of C is written through a copy.
  constexpr int64_t kWidth = kVectors * kStep;
  const int64_t width = std::min(kWidth, p.columns - column);
  alignas(kBytes) T copy[kRows * kWidth];
  T* tile = c;
  int64_t tile_row = p.c_row;
  if (width < kWidth) {
    tile = copy, tile_row = kWidth;
    for (int i = 0; i < kRows && p.accumulate; ++i) {
      std::memcpy(copy + i * kWidth, c + i * p.c_row, width * sizeof(T));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      T* const result = tile + i * tile_row + j * kStep;
      if (p.accumulate) {
        V old;
        load<kBytes>(result, old);
        sums[i][j] += old;
      }
      store<kBytes>(sums[i][j], result);
    }
  }
  if (width < kWidth) {
    for (int i = 0; i < kRows; ++i) {
      std::memcpy(c + i * p.c_row, copy + i * kWidth, width * sizeof(T));
    }
  }
}

template <typename T, int kBytes, int kVectors>
PYSEG_INLINE void multiply_panel(Product<T>& p, int64_t column) {
  int64_t row = 0;
  for (; row + 6 <= p.rows; row += 6) multiply_tile<T, kBytes, 6, kVectors>(p, row, column);
  if (row + 4 <= p.rows) multiply_tile<T, kBytes, 4, kVectors>(p, row, column), row += 4;
  if (row + 2 <= p.rows) multiply_tile<T, kBytes, 2, kVectors>(p, row, column), row += 2;
  if (row < p.rows) multiply_tile<T, kBytes, 1, kVectors>(p, row, column);
}

// Vectors of the widest tile: 6 x 4 accumulators are 24 of the 32 AVX-512 registers, 6 x 2 are 12
// of the 16 others.
template <int kBytes>
constexpr int64_t kWidest = kBytes == 64 ? 4 : 2;

template <typename T, int kBytes>
constexpr int64_t panels_of(int64_t columns) {
  constexpr int64_t kColumns = kWidest<kBytes> * kLanes<T, kBytes>;
  return (columns + kColumns - 1) / kColumns;
}

template <typename T, int kBytes>
PYSEG_INLINE void multiply_block(Product<T>& p) {
  constexpr int64_t kStep = kLanes<T, kBytes>;
  const int64_t vectors = (p.columns + kStep - 1) / kStep;
  if (vectors == 0) return;
  const int64_t panels = panels_of<T, kBytes>(p.columns);
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
        if constexpr (kWidest<kBytes> > 2) multiply_panel<T, kBytes, 3>(p, column);
        break;
      default:
        if constexpr (kWidest<kBytes> > 2) multiply_panel<T, kBytes, 4>(p, column);
    }
  }
}

template <typename T, int kBytes>
PYSEG_INLINE void multiply(const Product<T>& p) {
  Product<T> block = p;
  Lines lines[4];
  int64_t count = 0, bytes = 0;
  for (const Lines& range : p.ahead) {
    if (range.bytes() == 0) continue;
    bytes += range.bytes();
    lines[count++] = range;
  }
  // Prefetching a cached line costs nothing, unlike an unmapped address.
  lines[count] = Lines::repeat(p.b);
  block.lines = lines;
  const int64_t steps = panels_of<T, kBytes>(p.columns) * ((p.rows + 5) / 6) * p.depth;
  block.pace = std::clamp<int64_t>(bytes / std::max<int64_t>(steps, 1) + 1, 1, 64);
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
// the always-inline Kernel::run<Level>, which may call other kernels as Level::run<Other>; all
// kernels share the function multiply.
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

// result[j,i] = source[i,j] for i < rows and j < columns, in squares of whole vectors. Rows of both
// are padded to whole vectors; the result's padding becomes 0.
struct Transpose {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const T* source, int64_t rows, int64_t columns, int64_t source_row,
                               T* result, int64_t result_row) {
    constexpr int kBytes = Level::kBytes;
    constexpr int64_t kStep = kLanes<T, kBytes>;
    for (int64_t i0 = 0; i0 < rows; i0 += kStep) {
      for (int64_t j0 = 0; j0 < columns; j0 += kStep) {
        Vector<T, kBytes> square[kStep];
        for (int64_t i = 0; i < kStep; ++i) {
          square[i] = Vector<T, kBytes>{};
          if (i0 + i < rows) square[i] = at<T, kBytes>(source + (i0 + i) * source_row + j0);
        }
        transpose<T, kBytes>(square);
        for (int64_t j = 0; j < kStep; ++j) {
          at<T, kBytes>(result + (j0 + j) * result_row + i0) = square[j];
        }
      }
    }
  }
};

}  // namespace simd
}  // namespace pyseg
