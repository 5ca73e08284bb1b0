// The soft assignment of VLAD layers on the CPU, forward and backward, and the moments of its batch
// normalisation. No framework: raw pointers and sizes; the caller divides ranges among its threads.
//
//   y[n,k] = normal[n,k] weight[g,k] + bias[g,k]    with VladNorm, else the assignment itself
//   w[n,k] = attention[n] softmax_k(y[n,:])         n: all B * T * G rows
//
// Values are float, double, BFloat16 or Float16; sums are kept in Accumulate<T>. Sums over rows are
// taken in blocks of rows that only the shape decides, so results do not depend on the number of
// threads. Sums of tasks are aligned to 64 bytes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "pyseg/float16.h"
#include "pyseg/partial_sums.h"
#include "pyseg/simd.h"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace assignment_detail {

// Rows of one group's normalisation, each of whole vectors.
template <typename A>
struct NormRows {
  const A *mean, *rstd, *scale, *bias;  // scale = rstd weight
};

// VladNorm in the layout of the kernels: a group's rows side by side, with padding that leaves
// values as they are. (z - mean) scale + bias takes one operation more than z scale + shift, but
// does not cancel where the mean is much larger than the deviation.
template <typename A>
class NormScratch {
 public:
  NormScratch(const VladShape& shape, const VladNorm<A>& norm)
      : groups_(shape.groups),
        stride_(simd::padded<A>(shape.clusters)),
        values_(norm.values == nullptr ? 0 : 4 * groups_ * stride_),
        present_(norm.values != nullptr) {
    if (!present_) return;
    const int64_t clusters = shape.clusters, size = groups_ * clusters;
    for (int64_t g = 0; g < groups_; ++g) {
      A* const row = values_.get() + 4 * g * stride_;
      const A* const source = norm.values + g * clusters;
      for (int64_t k = 0; k < stride_; ++k) {
        const bool inside = k < clusters;
        row[k] = inside ? source[k] : 0;
        row[stride_ + k] = inside ? source[size + k] : 1;
        row[2 * stride_ + k] = inside ? source[size + k] * source[2 * size + k] : 1;
        row[3 * stride_ + k] = inside ? source[3 * size + k] : 0;
      }
    }
  }

  explicit operator bool() const { return present_; }

  // The rows of the group of row n.
  NormRows<A> of(int64_t n) const {
    const A* const row = values_.get() + 4 * (n % groups_) * stride_;
    return {row, row + stride_, row + 2 * stride_, row + 3 * stride_};
  }

 private:
  int64_t groups_, stride_;
  simd::Buffer<A> values_;
  bool present_;
};

// probability[i,:] = softmax_k(y[i,:]) for `count` rows from row n of the assignment on. Rows are
// padded to whole vectors with 0.
struct Softmax {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const T* assignment, int64_t count, int64_t clusters,
                               const NormScratch<Accumulate<T>>& norm, int64_t n,
                               Accumulate<T>* probability) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    constexpr int64_t kStep = simd::kLanes<A, kBytes>;
    constexpr A kLowest = -std::numeric_limits<A>::infinity();
    using V = simd::Vector<A, kBytes>;
    const int64_t stride = simd::padded<A>(clusters);
    for (int64_t i = 0; i < count; ++i) {
      A* const row = probability + i * stride;
      const NormRows<A> rows = norm ? norm.of(n + i) : NormRows<A>{};
      V largest = V{} + kLowest;
      for (int64_t k = 0; k < clusters; k += kStep) {
        V y;
        simd::load<kBytes>(assignment + i * clusters + k, clusters - k, kLowest, y);
        if (norm) {
          y = (y - simd::at<A, kBytes>(rows.mean + k)) * simd::at<A, kBytes>(rows.scale + k) +
              simd::at<A, kBytes>(rows.bias + k);
        }
        simd::at<A, kBytes>(row + k) = y;
        largest = y > largest ? y : largest;
      }
      const A shift = simd::maximum<A, kBytes>(largest);
      V total = {};
      for (int64_t k = 0; k < clusters; k += kStep) {
        V& x = simd::at<A, kBytes>(row + k);
        x -= shift;
        simd::exp_nonpositive<kBytes>(x);
        total += x;
      }
      const A scale = 1 / simd::sum<A, kBytes>(total);
      for (int64_t k = 0; k < clusters; k += kStep) simd::at<A, kBytes>(row + k) *= scale;
    }
  }
};

// The gradient of one row of the assignment from that of its weights, and the row's part of
// norm_sums. With p the softmax and g the gradient of w:
//   e[k] = attention p[k] (g[k] - mean),   mean = sum_k p[k] g[k]
// `probability` becomes the weights, attention p. With row weights e itself is written, see
// assignment_through_statistics.
template <typename T, int kBytes>
PYSEG_INLINE void assignment_gradient_row(const T* assignment, int64_t clusters,
                                          const NormScratch<Accumulate<T>>& norm,
                                          bool through_statistics, int64_t n,
                                          Accumulate<T> attention, const Accumulate<T>* g,
                                          Accumulate<T> mean, Accumulate<T>* probability, T* out,
                                          Accumulate<T>* by_weight, Accumulate<T>* by_bias) {
  using A = Accumulate<T>;
  using V = simd::Vector<A, kBytes>;
  const NormRows<A> rows = norm ? norm.of(n) : NormRows<A>{};
  for (int64_t k = 0; k < clusters; k += simd::kLanes<A, kBytes>) {
    V& weight = simd::at<A, kBytes>(probability + k);
    weight *= attention;
    V e = weight * (simd::at<A, kBytes>(g + k) - mean);
    if (norm) {
      V z;
      simd::load<kBytes>(assignment + k, clusters - k, A{0}, z);
      const V normal =
          (z - simd::at<A, kBytes>(rows.mean + k)) * simd::at<A, kBytes>(rows.rstd + k);
      simd::at<A, kBytes>(by_weight + k) += e * normal;
      simd::at<A, kBytes>(by_bias + k) += e;
      if (!through_statistics) e *= simd::at<A, kBytes>(rows.scale + k);
    }
    simd::store<kBytes>(e, clusters - k, out + k);
  }
}

// norm_sums of a task, as (2, G) rows of whole vectors: rows are summed in chunks, and chunks are
// added to the task's sums, which the caller provides.
template <typename A, int kBytes>
class NormSums {
 public:
  NormSums(const VladShape& shape, bool needed)
      : groups_(shape.groups),
        stride_(simd::padded<A>(shape.clusters)),
        chunk_(needed ? 2 * groups_ * stride_ : 0),
        size_(needed ? 2 * groups_ * stride_ : 0) {
    clear();
  }

  PYSEG_INLINE A* by_weight(int64_t n) const { return chunk_.get() + n % groups_ * stride_; }
  PYSEG_INLINE A* by_bias(int64_t n) const { return by_weight(n) + groups_ * stride_; }

  // Adds the chunk's sums to `result` and starts the next chunk.
  PYSEG_INLINE void add_chunk(A* result) const {
    for (int64_t i = 0; i < size_; i += simd::kLanes<A, kBytes>) {
      simd::at<A, kBytes>(result + i) += simd::at<A, kBytes>(chunk_.get() + i);
    }
    clear();
  }

 private:
  PYSEG_INLINE void clear() const { std::fill_n(chunk_.get(), size_, A{0}); }

  int64_t groups_, stride_;
  simd::Buffer<A> chunk_;
  int64_t size_;
};

// Where weight k of row n is, or its gradient: at first + k step.
struct WeightPlaces {
  WeightPlaces(const VladShape& shape, bool by_cluster, int64_t n)
      : first(n * shape.clusters), step(by_cluster ? shape.groups : 1) {
    const int64_t group = n % shape.groups;
    if (by_cluster) first += group - group * shape.clusters;
  }
  int64_t first, step;
};

// Rows that are processed together, in the cache.
constexpr int64_t kRows = 64;

// Rows of one task of the backward: tasks are few, since each has its own norm_sums.
inline int64_t block_rows(const VladShape& shape) {
  return std::max<int64_t>(2 * kRows, (shape.batch * shape.rows + 63) / 64);
}

struct Forward {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const T* assignment, const T* attention,
                               const VladNorm<Accumulate<T>>& norm, bool by_cluster, T* out,
                               int64_t begin, int64_t end) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    const int64_t clusters = shape.clusters, stride = simd::padded<A>(clusters);
    const NormScratch<A> norms(shape, norm);
    const simd::Buffer<A> probability(kRows * stride);
    for (int64_t n = begin; n < end; n += kRows) {
      const int64_t count = std::min(kRows, end - n);
      Level::template run<Softmax>(assignment + n * clusters, count, clusters, norms, n,
                                   probability.get());
      for (int64_t i = 0; i < count; ++i) {
        const A factor = widen(attention[n + i]);
        A* const row = probability.get() + i * stride;
        for (int64_t k = 0; k < clusters; k += simd::kLanes<A, kBytes>) {
          const auto p = simd::at<A, kBytes>(row + k) * factor;
          if (by_cluster) {
            simd::at<A, kBytes>(row + k) = p;
          } else {
            simd::store<kBytes>(p, clusters - k, out + (n + i) * clusters + k);
          }
        }
        if (!by_cluster) continue;
        const WeightPlaces places(shape, true, n + i);
        for (int64_t k = 0; k < clusters; ++k) {
          narrow(row[k], out[places.first + k * places.step]);
        }
      }
    }
  }
};

struct Backward {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const T* grad, bool by_cluster,
                               const T* assignment, const T* attention,
                               const VladNorm<Accumulate<T>>& norm, T* assignment_grad,
                               T* attention_grad, Accumulate<T>* norm_sums, int64_t begin,
                               int64_t end) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    using V = simd::Vector<A, kBytes>;
    const int64_t clusters = shape.clusters, stride = simd::padded<A>(clusters);
    const int64_t sums_size = 2 * shape.groups * stride;
    const NormScratch<A> norms(shape, norm);
    const NormSums<A, kBytes> sums(shape, static_cast<bool>(norms));
    const simd::Buffer<A> probability(kRows * stride), gradient(stride);
    A* const g = gradient.get();
    std::fill_n(g, stride, A{0});  // by cluster, the padding stays as it is
    for (int64_t block = begin; block < end; ++block) {
      A* const block_sums = norm_sums + block * sums_size;
      if (norms) std::fill_n(block_sums, sums_size, A{0});
      const int64_t first = block * block_rows(shape);
      const int64_t last = std::min(first + block_rows(shape), shape.batch * shape.rows);
      for (int64_t n0 = first; n0 < last; n0 += kRows) {
        const int64_t count = std::min(kRows, last - n0);
        Level::template run<Softmax>(assignment + n0 * clusters, count, clusters, norms, n0,
                                     probability.get());
        for (int64_t n = n0; n < n0 + count; ++n) {
          A* const p = probability.get() + (n - n0) * stride;
          if (by_cluster) {
            const WeightPlaces places(shape, true, n);
            for (int64_t k = 0; k < clusters; ++k) {
              g[k] = widen(grad[places.first + k * places.step]);
            }
          }
          V total = {};
          for (int64_t k = 0; k < clusters; k += simd::kLanes<A, kBytes>) {
            V& value = simd::at<A, kBytes>(g + k);
            if (!by_cluster) {
              simd::load<kBytes>(grad + n * clusters + k, clusters - k, A{0}, value);
            }
            total += value * simd::at<A, kBytes>(p + k);
          }
          const A mean = simd::sum<A, kBytes>(total);
          narrow_saturated(mean, attention_grad[n]);
          assignment_gradient_row<T, kBytes>(assignment + n * clusters, clusters, norms,
                                             norm.row_weights != nullptr, n, widen(attention[n]), g,
                                             mean, p, assignment_grad + n * clusters,
                                             sums.by_weight(n), sums.by_bias(n));
        }
        if (norms) sums.add_chunk(block_sums);
      }
    }
  }
};

struct ThroughStatistics {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const T* assignment,
                               const VladNorm<Accumulate<T>>& norm, const Accumulate<T>* norm_sums,
                               T* gradient, int64_t begin, int64_t end) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    using V = simd::Vector<A, kBytes>;
    const int64_t clusters = shape.clusters, groups = shape.groups;
    const NormScratch<A> norms(shape, norm);
    for (int64_t n = begin; n < end; ++n) {
      const NormRows<A> rows = norms.of(n);
      const A row_weight = norm.row_weights[n / groups];
      const A* const by_weight = norm_sums + n % groups * clusters;
      const A* const by_bias = by_weight + groups * clusters;
      for (int64_t k = 0; k < clusters; k += simd::kLanes<A, kBytes>) {
        const int64_t count = clusters - k;
        V z, e, weight_sum, bias_sum;
        simd::load<kBytes>(assignment + n * clusters + k, count, A{0}, z);
        simd::load<kBytes>(gradient + n * clusters + k, count, A{0}, e);
        simd::load<kBytes>(by_weight + k, count, A{0}, weight_sum);
        simd::load<kBytes>(by_bias + k, count, A{0}, bias_sum);
        const V normal =
            (z - simd::at<A, kBytes>(rows.mean + k)) * simd::at<A, kBytes>(rows.rstd + k);
        e -= (bias_sum + normal * weight_sum) * row_weight;
        simd::store<kBytes>(e * simd::at<A, kBytes>(rows.scale + k), count,
                            gradient + n * clusters + k);
      }
    }
  }
};

}  // namespace assignment_detail

// Weights, (B, T, G, K), or (B, T, K, G) with by_cluster, of the rows begin <= n < end of B * T *
// G. K is at least 1.
template <typename T>
void soft_assign(const VladShape& shape, const T* assignment, const T* attention,
                 const VladNorm<Accumulate<T>>& norm, bool by_cluster, T* out, int64_t begin,
                 int64_t end, Simd level = best_simd()) {
  simd::run<assignment_detail::Forward>(level, shape, assignment, attention, norm, by_cluster, out,
                                        begin, end);
}

// Blocks of rows in which soft_assign_backward works.
inline int64_t soft_assign_blocks(const VladShape& shape) {
  const int64_t rows = assignment_detail::block_rows(shape);
  return (shape.batch * shape.rows + rows - 1) / rows;
}

// Size of the norm_sums of one task: (2, G) rows, padded.
template <typename T>
int64_t norm_sums_size(const VladShape& shape) {
  return 2 * shape.groups * simd::padded<Accumulate<T>>(shape.clusters);
}

// Gradients of assignment and attention of the blocks begin <= i < end, from that of the weights,
// in the same order as by soft_assign. With norm.values, block i writes its part of norm_sums to
// norm_sums[i] (of norm_sums_size values), for add_partial_sums; with row weights,
// assignment_through_statistics then completes the gradient of the assignment.
template <typename T>
void soft_assign_backward(const VladShape& shape, const T* grad, bool by_cluster,
                          const T* assignment, const T* attention,
                          const VladNorm<Accumulate<T>>& norm, T* assignment_grad,
                          T* attention_grad, Accumulate<T>* norm_sums, int64_t begin, int64_t end,
                          Simd level = best_simd()) {
  simd::run<assignment_detail::Backward>(level, shape, grad, by_cluster, assignment, attention,
                                         norm, assignment_grad, attention_grad, norm_sums, begin,
                                         end);
}

// Turns e into the gradient of the assignment, in place, see VladGradient, for the rows
// begin <= n < end of B * T * G. norm_sums is (2, G, K).
template <typename T>
void assignment_through_statistics(const VladShape& shape, const T* assignment,
                                   const VladNorm<Accumulate<T>>& norm,
                                   const Accumulate<T>* norm_sums, T* gradient, int64_t begin,
                                   int64_t end, Simd level = best_simd()) {
  simd::run<assignment_detail::ThroughStatistics>(level, shape, assignment, norm, norm_sums,
                                                  gradient, begin, end);
}

}  // namespace pyseg
