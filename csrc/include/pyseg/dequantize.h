// The dequantisation of frames on the CPU, in one pass; the equation is in
// pyseg/dequantize_shape.h. No framework: raw pointers and sizes; the caller divides the rows among
// its threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "pyseg/dequantize_shape.h"
#include "pyseg/float16.h"
#include "pyseg/simd.h"

namespace pyseg {
namespace dequantize_detail {

// Widens the first min(count, lanes) bytes; the other lanes become 0.
template <int kBytes, typename A>
PYSEG_INLINE void load_bytes(const uint8_t* source, int64_t count,
                             simd::Vector<A, kBytes>& result) {
  constexpr int64_t kStep = simd::kLanes<A, kBytes>;
  simd::Vector<uint8_t, kStep> bytes = {};
  if (count < kStep) {
    uint8_t some[kStep] = {};
    simd::copy_few<kStep>(source, count, some);
    std::memcpy(&bytes, some, sizeof(bytes));
  } else {
    std::memcpy(&bytes, source, sizeof(bytes));
  }
  // In steps that GCC has instructions for: it converts bytes to 32 bits one by one.
  const auto words = __builtin_convertvector(bytes, simd::Vector<uint16_t, 2 * kStep>);
  const auto wide = __builtin_convertvector(words, simd::Vector<int32_t, 4 * kStep>);
  result = __builtin_convertvector(wide, simd::Vector<A, kBytes>);
}

// Keeps the compiler from fusing a product with a sum, so that each is rounded at every level, as
// in plain PyTorch: 255 stands for 2.0078125 exactly.
template <typename V>
PYSEG_INLINE void keep_rounded(V& product) {
#if defined(__x86_64__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#else
  asm("" : "+m"(product));
#endif
}

struct Dequantize {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const StoredFrames<Accumulate<T>>& in, int64_t begin, int64_t end,
                               T* values) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    constexpr int64_t kStep = simd::kLanes<A, kBytes>;
    const int64_t width = in.width;
    for (int64_t r = begin; r < end; ++r) {
      const uint8_t* const bytes = in.bytes + r * in.stride;
      T* const row = values + r * width;
      if (in.valid != nullptr && !in.valid[r]) {
        std::memset(static_cast<void*>(row), 0, width * sizeof(T));
        continue;
      }
      for (int64_t n = 0; n < width; n += kStep) {
        simd::Vector<A, kBytes> x, scale, offset;
        load_bytes<kBytes, A>(bytes + n, width - n, x);
        if (in.dequantization == nullptr) {
          scale = simd::Vector<A, kBytes>{} + static_cast<A>(kByteScale);
          offset = simd::Vector<A, kBytes>{} + static_cast<A>(kByteOffset);
        } else {
          simd::Vector<A, kBytes> zero_point;
          const A* const rows = in.dequantization + n;
          simd::load<kBytes>(rows, width - n, A{0}, zero_point);
          simd::load<kBytes>(rows + width, width - n, A{0}, scale);
          simd::load<kBytes>(rows + 2 * width, width - n, A{0}, offset);
          x -= zero_point;
        }
        x *= scale;
        keep_rounded(x);
        x += offset;
        simd::store<kBytes>(x, std::min(width - n, kStep), row + n);
      }
    }
  }
};

}  // namespace dequantize_detail

// Writes the rows begin <= r < end of x, (rows, width).
template <typename T>
void dequantize(const StoredFrames<Accumulate<T>>& in, int64_t begin, int64_t end, T* values,
                Simd level = best_simd()) {
  simd::run<dequantize_detail::Dequantize>(level, in, begin, end, values);
}

}  // namespace pyseg
