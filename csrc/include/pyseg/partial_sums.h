// Sums over a batch in an order that does not depend on the threads: each task writes its own sum,
// and these are added in order. The shape alone decides the size of a task.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pyseg/float16.h"
#include "pyseg/simd.h"

namespace pyseg {
namespace partial_sums_detail {

// Long sums are taken in blocks of this length, then over blocks, which reduces rounding errors.
constexpr int64_t kBlock = 16;

struct AddPartialSums {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const Accumulate<T>* partial, int64_t count, int64_t size,
                               int64_t columns, const Accumulate<T>& factor, T* out, int64_t begin,
                               int64_t end) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    const int64_t stride = simd::padded<A>(columns);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t k = 0; k < columns; k += simd::kLanes<A, kBytes>) {
        simd::Vector<A, kBytes> sum = {};
        for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
          simd::Vector<A, kBytes> block = {};
          for (int64_t i = i0; i < std::min(i0 + kBlock, count); ++i) {
            block += simd::at<A, kBytes>(partial + i * size + row * stride + k);
          }
          sum += block;
        }
        simd::store<kBytes>(sum * factor, columns - k, out + row * columns + k);
      }
    }
  }
};

}  // namespace partial_sums_detail

// out[row,:] = factor * sum_i partial[i][row,:] for the rows begin <= row < end. The `count`
// partial arrays are `size` values apart, their rows padded<A>(columns) values.
template <typename T>
void add_partial_sums(const Accumulate<T>* partial, int64_t count, int64_t size, int64_t columns,
                      Accumulate<T> factor, T* out, int64_t begin, int64_t end,
                      Simd level = best_simd()) {
  simd::run<partial_sums_detail::AddPartialSums>(level, partial, count, size, columns, factor, out,
                                                 begin, end);
}

}  // namespace pyseg
