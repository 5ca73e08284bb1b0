// Mean and biased variance of every column of a matrix on the CPU, in one pass:
//
//   mean[c] = sum_r w[r] x[r,c],   variance[c] = sum_r w[r] (x[r,c] - mean[c])^2
//
// A few rows at a time are read, and their own mean and squared deviations computed while they are
// in the L1 cache; those of two sets of rows merge without cancellation (Chan, Golub and LeVeque
// 1979). One of the rows is subtracted from all, so that rounding errors of means are relative to
// the deviation and not to the mean. The shape alone divides rows into blocks, so results do not
// depend on the number of threads. The workspace is aligned to 64 bytes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pyseg/float16.h"
#include "pyseg/simd.h"

namespace pyseg {
namespace moments_detail {

constexpr int64_t kRows = 16;  // read together

inline int64_t block_rows(int64_t rows) { return std::max<int64_t>(4 * kRows, (rows + 63) / 64); }

// The row that is subtracted from all: the first of non-zero weight, or null.
template <typename T>
const T* origin_row(int64_t rows, int64_t columns, const T* x, const Accumulate<T>* row_weights) {
  int64_t row = 0;
  while (row < rows && row_weights != nullptr && row_weights[row] == 0) ++row;
  return row < rows ? x + row * columns : nullptr;
}

// The sums of one block of rows: weight (padded to whole vectors), mean and squared deviations.
template <typename A>
struct Partial {
  A *weight, *mean, *squares;

  Partial(A* workspace, int64_t columns, int64_t block)
      : weight(workspace + block * size(columns)),
        mean(weight + simd::kLanes<A, 64>),
        squares(mean + simd::padded<A>(columns)) {}

  static int64_t size(int64_t columns) {
    return simd::kLanes<A, 64> + 2 * simd::padded<A>(columns);
  }
};

// Merges (weight, mean, squares) of other rows into (total, mean, squares).
template <typename V, typename A>
PYSEG_INLINE void merge(A total, A weight, const V& other_mean, const V& other_squares, V& mean,
                        V& squares) {
  const A part = weight / (total + weight);
  const V delta = other_mean - mean;
  mean += delta * part;
  squares += other_squares + delta * delta * (total * part);
}

struct Blocks {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(int64_t rows, int64_t columns, const T* x,
                               const Accumulate<T>* row_weights, Accumulate<T>* workspace,
                               int64_t begin, int64_t end) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    constexpr int64_t kStep = simd::kLanes<A, kBytes>;
    using V = simd::Vector<A, kBytes>;
    const int64_t stride = simd::padded<A>(columns);
    const T* const origin = origin_row(rows, columns, x, row_weights);
    for (int64_t block = begin; block < end; ++block) {
      const Partial<A> partial(workspace, columns, block);
      std::fill_n(partial.mean, stride, A{0});
      std::fill_n(partial.squares, stride, A{0});
      A total = 0;
      int64_t row = block * block_rows(rows);
      const int64_t last = std::min(row + block_rows(rows), rows);
      while (row < last) {
        // Rows of weight 0 are not read: they may hold anything.
        const T* sources[kRows];
        A weights[kRows];
        int64_t count = 0;
        A weight = 0;
        for (; row < last && count < kRows; ++row) {
          const A w = row_weights == nullptr ? A{1} : row_weights[row];
          if (w == 0) continue;
          sources[count] = x + row * columns;
          weights[count++] = w;
          weight += w;
        }
        if (count == 0) break;
        const A inverse = 1 / weight;
        for (int64_t k = 0; k < columns; k += kStep) {
          V values[kRows], first, mean = {}, squares = {};
          simd::load<kBytes>(origin + k, columns - k, A{0}, first);
          for (int64_t i = 0; i < count; ++i) {
            simd::load<kBytes>(sources[i] + k, columns - k, A{0}, values[i]);
            values[i] -= first;
            mean += values[i] * weights[i];
          }
          mean *= inverse;
          for (int64_t i = 0; i < count; ++i) {
            const V difference = values[i] - mean;
            squares += difference * difference * weights[i];
          }
          merge(total, weight, mean, squares, simd::at<A, kBytes>(partial.mean + k),
                simd::at<A, kBytes>(partial.squares + k));
        }
        total += weight;
      }
      *partial.weight = total;
    }
  }
};

struct Merge {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(int64_t rows, int64_t columns, const T* x,
                               const Accumulate<T>* row_weights, int64_t blocks,
                               Accumulate<T>* workspace, Accumulate<T>* out) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    using V = simd::Vector<A, kBytes>;
    const T* const origin = origin_row(rows, columns, x, row_weights);
    for (int64_t k = 0; k < columns; k += simd::kLanes<A, kBytes>) {
      V mean = {}, squares = {};
      A total = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        const Partial<A> partial(workspace, columns, block);
        if (*partial.weight == 0) continue;
        merge(total, *partial.weight, simd::at<A, kBytes>(partial.mean + k),
              simd::at<A, kBytes>(partial.squares + k), mean, squares);
        total += *partial.weight;
      }
      if (origin != nullptr) {
        V first;
        simd::load<kBytes>(origin + k, columns - k, A{0}, first);
        mean += first;
      }
      if (row_weights != nullptr) {  // the equations hold for weights that do not quite sum to 1
        const V rest = mean - mean * total;
        mean *= total;
        squares += rest * rest * total;
      } else if (rows > 0) {
        squares *= 1 / static_cast<A>(rows);
      }
      simd::store<kBytes>(mean, columns - k, out + k);
      simd::store<kBytes>(squares, columns - k, out + columns + k);
    }
  }
};

}  // namespace moments_detail

// Blocks of rows in which moments are taken, and values of workspace for all of them.
inline int64_t moments_blocks(int64_t rows) {
  const int64_t block = moments_detail::block_rows(rows);
  return (rows + block - 1) / block;
}
template <typename T>
int64_t moments_workspace(int64_t rows, int64_t columns) {
  return moments_blocks(rows) * moments_detail::Partial<Accumulate<T>>::size(columns);
}

// The moments of the blocks begin <= i < end of x, (rows, columns), into the workspace. row_weights
// is (rows), non-negative with sum 1, or null: 1 / rows each.
template <typename T>
void moments(int64_t rows, int64_t columns, const T* x, const Accumulate<T>* row_weights,
             Accumulate<T>* workspace, int64_t begin, int64_t end, Simd level = best_simd()) {
  simd::run<moments_detail::Blocks>(level, rows, columns, x, row_weights, workspace, begin, end);
}

// Mean and variance, (2, columns), from the workspace once all blocks are done.
template <typename T>
void merge_moments(int64_t rows, int64_t columns, const T* x, const Accumulate<T>* row_weights,
                   Accumulate<T>* workspace, Accumulate<T>* out, Simd level = best_simd()) {
  simd::run<moments_detail::Merge>(level, rows, columns, x, row_weights, moments_blocks(rows),
                                   workspace, out);
}

}  // namespace pyseg
