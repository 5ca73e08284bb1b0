// Weighted binary cross-entropy of incompletely rated rows on the CPU: equations (1), (2), (3) and
// (6) of the paper in one pass over the logits, with the gradient. No framework: raw pointers and
// sizes; the caller divides the rows among its threads.
//
//   y[j] = the score of a rated class, else min(1, sum_i e_i P'[i,j]) over the rated classes i,
//          e_i = score_i + absent_evidence (1 - score_i)
//   w[j] = rated_weight where j is rated, else unrated_weight
//   loss = sum_j w[j] (softplus(z[j]) - y[j] z[j])
//   gradient[j] = share w[j] (sigmoid(z[j]) - y[j]),   share = rated_bce_share
//
// A thread keeps y and w of one row in its L1 cache and resets the changed entries after the row,
// so (B, C) targets and weights are never formed. Values are float, double, BFloat16 or Float16;
// sums are kept in Accumulate<T>. Every row is computed by one thread in a fixed order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "pyseg/float16.h"
#include "pyseg/rated_bce_shape.h"
#include "pyseg/simd.h"

namespace pyseg {

// A row's weight in the mean, 1 / B, so that the gradient of the mean loss needs no further pass.
// For Float16 it is 1: small gradients would underflow before a later loss scale could save them.
template <typename T>
Accumulate<T> rated_bce_share(int64_t batch) {
  return std::is_same_v<T, Float16> ? 1 : 1 / static_cast<Accumulate<T>>(batch);
}

// What the gradient then lacks, exactly 1 for other types.
template <typename T>
Accumulate<T> rated_bce_missing_share(int64_t batch) {
  return std::is_same_v<T, Float16> ? 1 / static_cast<Accumulate<T>>(batch) : 1;
}

namespace rated_bce_detail {

// Long sums are taken in blocks of this many vectors, then over blocks, which reduces rounding
// errors.
constexpr int64_t kBlock = 16;

// x = log(1 + x) for 0 <= x <= 1
template <int kBytes>
PYSEG_INLINE void log1p_unit(simd::Vector<float, kBytes>& x) {
  log1p_polynomial(x);
}

template <int kBytes>
PYSEG_INLINE void log1p_unit(simd::Vector<double, kBytes>& x) {
  for (int64_t i = 0; i < simd::kLanes<double, kBytes>; ++i) x[i] = std::log1p(x[i]);
}

struct Rows {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const RatedBceInput<T, Accumulate<T>>& in, Accumulate<T>* loss,
                               T* gradient, int64_t begin, int64_t end) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    constexpr int64_t kStep = simd::kLanes<A, kBytes>;
    using V = simd::Vector<A, kBytes>;
    const int64_t classes = in.classes, stride = simd::padded<A>(classes);
    const simd::Buffer<A> target(stride), weight(stride);
    std::fill_n(target.get(), stride, A{0});
    std::fill_n(weight.get(), stride, in.unrated_weight);
    std::fill(weight.get() + classes, weight.get() + stride, A{0});
    const A share = rated_bce_share<T>(in.batch);
    const auto& [size, offsets, rated, scores] = in.ratings;
    const auto& relation = in.correlation;

    for (int64_t b = begin; b < end; ++b) {
      if (relation.offsets != nullptr) {
        for (int64_t r = offsets[b]; r < offsets[b + 1]; ++r) {
          const int64_t i = rated[r];
          const A e = evidence(scores[r], in.absent_evidence);
          for (int64_t p = relation.offsets[i]; p < relation.offsets[i + 1]; ++p) {
            A& y = target.get()[relation.columns[p]];
            y = std::min(y + e * relation.values[p], A{1});
          }
        }
      }
      for (int64_t r = offsets[b]; r < offsets[b + 1]; ++r) {
        target.get()[rated[r]] = scores[r];
        weight.get()[rated[r]] = in.rated_weight;
      }

      const T* z_row = in.logits + b * classes;
      T* gradient_row = gradient == nullptr ? nullptr : gradient + b * classes;
      V total = {};
      for (int64_t block = 0; block < classes; block += kBlock * kStep) {
        V sum = {};
        for (int64_t j = block; j < std::min(block + kBlock * kStep, classes); j += kStep) {
          V z;
          simd::load<kBytes>(z_row + j, classes - j, A{0}, z);
          const V& y = simd::at<A, kBytes>(target.get() + j);
          const V& w = simd::at<A, kBytes>(weight.get() + j);
          V e = z > V{} ? -z : z;  // a NaN stays
          simd::exp_nonpositive<kBytes>(e);
          if (gradient_row != nullptr) {
            const V inverse = 1 / (1 + e);
            const V sigmoid = z < V{} ? e * inverse : inverse;
            simd::store<kBytes>(w * (sigmoid - y) * share, classes - j, gradient_row + j);
          }
          log1p_unit<kBytes>(e);
          // softplus(z) - y z, without cancellation where z is large
          sum += w * (e + (z > V{} ? z * (1 - y) : -y * z));
        }
        total += sum;
      }
      loss[b] = simd::sum<A, kBytes>(total);

      for (int64_t r = offsets[b]; r < offsets[b + 1]; ++r) {
        target.get()[rated[r]] = 0;
        weight.get()[rated[r]] = in.unrated_weight;
        if (relation.offsets == nullptr) continue;
        for (int64_t p = relation.offsets[rated[r]]; p < relation.offsets[rated[r] + 1]; ++p) {
          target.get()[relation.columns[p]] = 0;
        }
      }
    }
  }
};

struct Scale {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const T* gradient, Accumulate<T> scale, T* result, int64_t begin,
                               int64_t end) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    for (int64_t i = begin; i < end; i += simd::kLanes<A, kBytes>) {
      simd::Vector<A, kBytes> x;
      simd::load<kBytes>(gradient + i, end - i, A{0}, x);
      simd::store<kBytes>(x * scale, end - i, result + i);
    }
  }
};

}  // namespace rated_bce_detail

// Loss of the rows begin <= b < end, (B), and unless null the gradient above, (B, C). Indices in
// ratings and correlation must be in range.
template <typename T>
void rated_bce(const RatedBceInput<T, Accumulate<T>>& in, Accumulate<T>* loss, T* gradient,
               int64_t begin, int64_t end, Simd level = best_simd()) {
  simd::run<rated_bce_detail::Rows>(level, in, loss, gradient, begin, end);
}

// result = scale * gradient, for the values begin <= i < end. The two may be one array.
template <typename T>
void rated_bce_scale(const T* gradient, Accumulate<T> scale, T* result, int64_t begin, int64_t end,
                     Simd level = best_simd()) {
  simd::run<rated_bce_detail::Scale>(level, gradient, scale, result, begin, end);
}

// The mean of the rows' losses, in their order.
template <typename A>
A rated_bce_mean(const A* loss, int64_t batch) {
  double total = 0;
  for (int64_t b = 0; b < batch; ++b) total += loss[b];
  return batch == 0 ? A{0} : static_cast<A>(total / static_cast<double>(batch));
}

}  // namespace pyseg
