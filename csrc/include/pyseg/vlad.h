// Soft-assignment aggregation of NetVLAD (Arandjelovic et al. 2016, equation 4) and NeXtVLAD (Lin
// et al. 2018, equations 2 to 5) on the CPU, forward and backward. No framework: raw pointers and
// sizes; the caller divides ranges of tasks among its threads.
//
//   w[n,k] = attention[n] softmax_k(y[n,:])           n: the T * G rows of one video
//   v[f,k] = sum_n w[n,k] (features[n,f] - centers[f,k])
//   output[f,k] = v[f,k] / sqrt(max(sum_f v[f,k]^2, eps))
//
// where y is the assignment, normalised by VladNorm. Values are float, double, BFloat16 or Float16;
// sums are kept in Accumulate<T>. Workspaces and the sums of tasks are aligned to 64 bytes.
//
// A video's rows are summed in slices of kSliceRows, v = ((v0 + v1) + v2) + ..., one after another
// in the cache or by several threads. The shape alone decides the order of a sum, so a video's
// result depends neither on the number of threads nor on its batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "pyseg/assignment.h"
#include "pyseg/float16.h"
#include "pyseg/partial_sums.h"
#include "pyseg/simd.h"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace vlad_detail {

using assignment_detail::NormScratch;
using assignment_detail::NormSums;
using assignment_detail::Softmax;

// Rows of a video that are processed together: their weights and features stay in the cache.
constexpr int64_t kRows = 64;
constexpr int64_t kSliceRows = 8 * kRows;
// Long sums are taken in blocks of this length, then over blocks, which reduces rounding errors.
constexpr int64_t kBlock = 16;

// Videos of a block, whose parts of the gradient of centers are summed at once: about 32 blocks
// need little memory, and short sums lose little accuracy. The part of a block of one video would
// be as large as the output; reading the output again is no slower, so such a block stores the two
// rows of factors that this takes.
inline int64_t block_videos(int64_t batch) {
  return std::clamp<int64_t>((batch + 31) / 32, 1, kBlock);
}

// Columns of features that a forward multiplies at a time. If summing a video's rows takes several
// products, they are finished for some columns before the next ones, so that the sums stay in the
// cache: those of NetVLAD with F = 1152, and their features, exceed an L2 cache of 512 KB.
inline int64_t columns_at_once(const VladShape& shape) {
  constexpr int64_t kColumns = 384;
  return shape.rows > kRows ? std::min(kColumns, shape.width) : shape.width;
}

// Rows whose weights a forward keeps: a slice if the columns are processed in several steps.
inline int64_t weights_at_once(const VladShape& shape) {
  return std::min(columns_at_once(shape) < shape.width ? kSliceRows : kRows, shape.rows);
}

// An operand of a product, with rows of length `row`.
template <typename A>
struct Operand {
  const A* data;
  int64_t row;
};

// Features with rows of length `row`: in place, or widened into `scratch`.
template <typename T, int kBytes>
PYSEG_INLINE Operand<Accumulate<T>> widen_features(const T* source, int64_t row, int64_t rows,
                                                   int64_t columns, Accumulate<T>* scratch) {
  using A = Accumulate<T>;
  if constexpr (std::is_same_v<T, A>) {
    return {source, row};
  } else {
    const int64_t stride = simd::padded<A>(columns);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t f = 0; f < columns; f += simd::kLanes<A, kBytes>) {
        simd::load<kBytes>(source + i * row + f, columns - f, A{0},
                           simd::at<A, kBytes>(scratch + i * stride + f));
      }
    }
    return {scratch, stride};
  }
}

// Size of the scratch for `columns` of kRows rows.
template <typename T>
int64_t wide_size(const VladShape& shape, int64_t columns) {
  using A = Accumulate<T>;
  return std::is_same_v<T, A> ? 0 : std::min(kRows, shape.rows) * simd::padded<A>(columns);
}

// The `columns` from f on of the rows n to n + count that exist, in values with rows of length
// `row`.
template <typename T>
PYSEG_INLINE simd::Lines rows_ahead(const VladShape& shape, const T* values, int64_t row, int64_t n,
                                    int64_t count, int64_t f, int64_t columns) {
  const int64_t left = shape.batch * shape.rows - n;
  return {values + n * row + f, std::min(count, left), columns, row};
}
template <typename T>
PYSEG_INLINE simd::Lines rows_ahead(const VladShape& shape, const T* values, int64_t row, int64_t n,
                                    int64_t count) {
  return rows_ahead(shape, values, row, n, count, 0, row);
}

template <typename A, int kBytes>
PYSEG_INLINE void add_rows(const A* source, int64_t size, A* result) {
  for (int64_t i = 0; i < size; i += simd::kLanes<A, kBytes>) {
    simd::at<A, kBytes>(result + i) += simd::at<A, kBytes>(source + i);
  }
}

// Size of a slice's sums: v as F rows of whole vectors, then a row of the mass, sum_n w[n,:].
inline int64_t slice_sums_size(const VladShape& shape, int64_t stride) {
  return (shape.width + 1) * stride;
}

template <typename T>
struct SumScratch {
  using A = Accumulate<T>;
  NormScratch<A> norm;
  simd::Buffer<A> weight, wide, partial;

  SumScratch(const VladShape& shape, const VladNorm<A>& values)
      : norm(shape, values),
        weight(weights_at_once(shape) * simd::padded<A>(shape.clusters)),
        wide(wide_size<T>(shape, columns_at_once(shape))),
        partial(simd::padded<A>(shape.clusters)) {}
};

// v and mass of one slice of a video's rows, before centers are subtracted.
struct SumSlice {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladInput<T, Accumulate<T>>& in,
                               const SumScratch<T>& scratch, int64_t b, int64_t slice,
                               Accumulate<T>* sums, const simd::Lines& then) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    constexpr int64_t kStep = simd::kLanes<A, kBytes>;
    using V = simd::Vector<A, kBytes>;
    const auto [batch, rows, groups, width, clusters] = shape;
    const int64_t stride = simd::padded<A>(clusters);
    const int64_t begin = slice * kSliceRows, end = std::min(begin + kSliceRows, rows);
    const int64_t step = columns_at_once(shape);
    A *const weight = scratch.weight.get(), *const mass = sums + width * stride;
    A* const partial = scratch.partial.get();
    std::fill_n(mass, stride, A{0});
    if (begin == end) std::fill_n(sums, width * stride, A{0});
    for (int64_t n0 = begin; n0 < end; n0 += weights_at_once(shape)) {
      const int64_t n1 = std::min(n0 + weights_at_once(shape), end), count = n1 - n0;
      const int64_t first = b * rows + n0;
      Level::template run<Softmax>(in.assignment + first * clusters, count, clusters, scratch.norm,
                                   n0, weight);
      for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
        std::fill_n(partial, stride, A{0});
        for (int64_t i = i0; i < std::min(i0 + kBlock, count); ++i) {
          A* const row = weight + i * stride;
          const A attention = widen(in.attention[first + i]);
          for (int64_t k = 0; k < clusters; k += kStep) {
            V& w = simd::at<A, kBytes>(row + k);
            w *= attention;
            simd::at<A, kBytes>(partial + k) += w;
          }
        }
        add_rows<A, kBytes>(partial, stride, mass);
      }
      for (int64_t f = 0; f < width; f += step) {
        for (int64_t n = n0; n < n1; n += kRows) {
          const int64_t columns = std::min(step, width - f), depth = std::min(kRows, n1 - n);
          // The next product takes the next rows, the next columns, or the rows from n1 on.
          const bool same_columns = n + kRows < n1, last = !same_columns && f + step >= width;
          const int64_t next = same_columns ? n + kRows : last ? n1 : n0;
          const int64_t next_f = same_columns ? f : last ? 0 : f + step;
          const int64_t next_depth = last ? depth : std::min(kRows, n1 - next);
          const Operand<A> x = widen_features<T, kBytes>(in.features + (b * rows + n) * width + f,
                                                         width, depth, columns, scratch.wide.get());
          Level::template multiply<A>(
              {.rows = columns,
               .columns = simd::padded<A, kBytes>(clusters),
               .depth = depth,
               .a = x.data,
               .a_row = 1,
               .a_depth = x.row,
               .b = weight + (n - n0) * stride,
               .b_row = stride,
               .c = sums + f * stride,
               .c_row = stride,
               .accumulate = n > begin,
               .ahead = {last ? rows_ahead(shape, in.assignment, clusters, b * rows + next, depth)
                              : simd::Lines(),
                         rows_ahead(shape, in.features, width, b * rows + next, next_depth, next_f,
                                    std::min(step, width - next_f)),
                         last && n1 == end ? then : simd::Lines()}});
        }
      }
    }
  }
};

// Computes a video's output from the sums of its slices, for the columns from k0 to k1, multiples
// of the lanes. The sums of the first slice become those of all; `scale` is a row of scratch.
struct Finish {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const T* centers, double eps, int64_t b,
                               Accumulate<T>* sums, int64_t slices,
                               const VladOutput<T, Accumulate<T>>& out, Accumulate<T>* scale,
                               int64_t k0, int64_t k1) {
    using A = Accumulate<T>;
    constexpr int kBytes = Level::kBytes;
    constexpr int64_t kStep = simd::kLanes<A, kBytes>;
    using V = simd::Vector<A, kBytes>;
    const int64_t width = shape.width, clusters = shape.clusters;
    const int64_t stride = simd::padded<A>(clusters), size = slice_sums_size(shape, stride);
    A* const mass = sums + width * stride;
    for (int64_t k = k0; k < k1; k += kStep) {
      V& total = simd::at<A, kBytes>(mass + k);
      for (int64_t s = 1; s < slices; ++s) total += simd::at<A, kBytes>(mass + s * size + k);
    }
    std::fill(scale + k0, scale + k1, A{0});
    const int64_t end = std::min(k1, clusters), whole = end / kStep * kStep;
    for (int64_t f = 0; f < width; f += kBlock) {
      const int64_t count = std::min(kBlock, width - f);
      A* const rows = sums + f * stride;
      for (int64_t s = 1; s < slices; ++s) {
        for (int64_t i = 0; i < count; ++i) {
          add_rows<A, kBytes>(rows + s * size + i * stride + k0, k1 - k0, rows + i * stride + k0);
        }
      }
      for (int64_t k = k0; k < end; k += kStep) {
        const T* const row = centers + f * clusters + k;
        const V& weight = simd::at<A, kBytes>(mass + k);
        V& squares = simd::at<A, kBytes>(scale + k);
        if (k < whole) {
          subtract<false, kBytes>(row, count, clusters, k, weight, rows + k, stride, squares);
        } else {
          subtract<true, kBytes>(row, count, clusters, k, weight, rows + k, stride, squares);
        }
      }
    }
    std::copy(mass + k0, mass + end, out.mass + b * clusters + k0);
    std::copy(scale + k0, scale + end, out.square_norm + b * clusters + k0);
    for (int64_t k = k0; k < end; ++k) {
      scale[k] = 1 / std::sqrt(std::max(scale[k], static_cast<A>(eps)));
    }
    for (int64_t f = 0; f < width; ++f) {
      for (int64_t k = k0; k < end; k += kStep) {
        const V& v = simd::at<A, kBytes>(sums + f * stride + k);
        simd::store<kBytes>(v * simd::at<A, kBytes>(scale + k), clusters - k,
                            out.output + (b * width + f) * clusters + k);
      }
    }
  }

 private:
  // Subtracts mass times centers from `count` rows of v, a vector of each, and adds their squares.
  template <bool kPartial, int kBytes, typename T, typename V>
  PYSEG_INLINE static void subtract(const T* centers, int64_t count, int64_t clusters, int64_t k,
                                    const V& mass, Accumulate<T>* v, int64_t stride, V& squares) {
    V block = {};
    for (int64_t i = 0; i < count; ++i) {
      V center;
      simd::load<kBytes, kPartial>(centers + i * clusters, clusters - k, 0, center);
      V& value = simd::at<Accumulate<T>, kBytes>(v + i * stride);
      value -= center * mass;
      block += value * value;
    }
    squares += block;
  }
};

inline int64_t slices_of(const VladShape& shape) {
  return std::max<int64_t>(1, (shape.rows + kSliceRows - 1) / kSliceRows);
}

struct Forward {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladInput<T, Accumulate<T>>& in,
                               double eps, const VladOutput<T, Accumulate<T>>& out, int64_t begin,
                               int64_t end) {
    using A = Accumulate<T>;
    const int64_t stride = simd::padded<A>(shape.clusters);
    const int64_t size = slice_sums_size(shape, stride), slices = slices_of(shape);
    const SumScratch<T> scratch(shape, in.norm);
    const simd::Buffer<A> sums(size), slice_sums(slices > 1 ? size : 0), scale(stride);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t output_size = shape.width * shape.clusters;
      const simd::Lines result(out.output + b * output_size, output_size);
      Level::template run<SumSlice>(shape, in, scratch, b, 0, sums.get(),
                                    slices == 1 ? result : simd::Lines());
      for (int64_t s = 1; s < slices; ++s) {
        Level::template run<SumSlice>(shape, in, scratch, b, s, slice_sums.get(),
                                      s + 1 < slices ? simd::Lines() : result);
        add_rows<A, Level::kBytes>(slice_sums.get(), size, sums.get());
      }
      Level::template run<Finish>(shape, in.centers, eps, b, sums.get(), 1, out, scale.get(), 0,
                                  stride);
    }
  }
};

struct ForwardSlices {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladInput<T, Accumulate<T>>& in,
                               Accumulate<T>* workspace, int64_t begin, int64_t end) {
    using A = Accumulate<T>;
    const int64_t size = slice_sums_size(shape, simd::padded<A>(shape.clusters));
    const int64_t slices = slices_of(shape);
    const SumScratch<T> scratch(shape, in.norm);
    for (int64_t i = begin; i < end; ++i) {
      Level::template run<SumSlice>(shape, in, scratch, i / slices, i % slices,
                                    workspace + i * size, simd::Lines());
    }
  }
};

struct ForwardFinish {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladInput<T, Accumulate<T>>& in,
                               double eps, const VladOutput<T, Accumulate<T>>& out,
                               Accumulate<T>* workspace, int64_t begin, int64_t end) {
    using A = Accumulate<T>;
    constexpr int64_t kLine = simd::kLanes<A, 64>;
    const int64_t stride = simd::padded<A>(shape.clusters), lines = stride / kLine;
    const int64_t size = slice_sums_size(shape, stride), slices = slices_of(shape);
    const simd::Buffer<A> scale(stride);
    while (begin < end) {
      const int64_t b = begin / lines, first = begin % lines;
      const int64_t last = std::min(lines, first + end - begin);
      Level::template run<Finish>(shape, in.centers, eps, b, workspace + b * slices * size, slices,
                                  out, scale.get(), first * kLine, last * kLine);
      begin += last - first;
    }
  }
};

// With d the gradient of v (see prepare), p the softmax and s[k] = -sum_f d[f,k] c[f,k]:
//   g[n,k] = sum_f features[n,f] d[f,k] + s[k]                 the gradient of w
//   d_attention[n] = sum_k p[n,k] g[n,k]
//   e[n,k] = attention[n] p[n,k] (g[n,k] - d_attention[n])     the gradient of y
//   d_features[n,f] = attention[n] sum_k p[n,k] d[f,k]
//   d_centers[f,k] = -sum_b mass[b,k] d[b,f,k]
template <typename T, typename Level>
class Gradient {
  using A = Accumulate<T>;
  static constexpr int kBytes = Level::kBytes;
  static constexpr int64_t kStep = simd::kLanes<A, kBytes>;
  using V = simd::Vector<A, kBytes>;

 public:
  Gradient(const VladShape& shape, const VladInput<T, A>& in, const VladSaved<T, A>& saved,
           double eps, const VladGradient<T, A>& out)
      : shape_(shape),
        in_(in),
        saved_(saved),
        eps_(static_cast<A>(eps)),
        out_(out),
        stride_(simd::padded<A>(shape.clusters)),
        wide_stride_(simd::padded<A>(shape.width)),
        chunk_(std::min(kRows, shape.rows)),
        norm_(shape, in.norm),
        norm_sums_(shape, static_cast<bool>(norm_)),
        probability_(chunk_ * stride_),
        gradient_(chunk_ * stride_),
        wide_(wide_size<T>(shape, shape.width)),
        product_(wide_size<T>(shape, shape.width)),
        d_(shape.width * stride_),
        transposed_(out.features == nullptr ? 0 : stride_ * wide_stride_),
        scale_(stride_),
        projection_(stride_),
        mass_(stride_),
        shift_(stride_) {}

  // d of video b: d = scale (grad - output projection), where projection = sum_f grad output and
  // scale = 1 / |v|; for a column with |v|^2 < eps they are 0 and 1 / sqrt(eps). Unless null,
  // `centers` receives the video's part of the gradient of centers, added, and `factors` the
  // products scale mass and the projection, from which CentersOfOne computes that part.
  PYSEG_INLINE void prepare(int64_t b, A* centers, A* factors) const {
    const int64_t width = shape_.width, clusters = shape_.clusters;
    const int64_t whole = clusters / kStep * kStep;
    std::fill_n(projection_.get(), stride_, A{0});
    for (int64_t f = 0; f < width; f += kBlock) {
      for (int64_t k = 0; k < whole; k += kStep) project<false>(b, f, k);
      if (whole < clusters) project<true>(b, f, whole);
    }
    std::fill_n(scale_.get(), stride_, A{0});
    std::fill_n(mass_.get(), stride_, A{0});
    for (int64_t k = 0; k < clusters; ++k) {
      const A norm = saved_.square_norm[b * clusters + k];
      const bool clamped = norm < eps_;
      scale_.get()[k] = 1 / std::sqrt(clamped ? eps_ : norm);
      if (clamped) projection_.get()[k] = 0;
      mass_.get()[k] = saved_.mass[b * clusters + k];
    }
    for (int64_t k = 0; k < stride_ && factors != nullptr; ++k) {
      factors[k] = scale_.get()[k] * mass_.get()[k];
      factors[stride_ + k] = projection_.get()[k];
    }
    std::fill_n(shift_.get(), stride_, A{0});
    for (int64_t f = 0; f < width; f += kBlock) {
      for (int64_t k = 0; k < whole; k += kStep) differentiate<false>(b, f, k);
      if (whole < clusters) differentiate<true>(b, f, whole);
      // While these rows of d are in the L1 cache.
      const int64_t count = std::min(kBlock, width - f);
      const A* const d = d_.get() + f * stride_;
      for (int64_t i = 0; i < count && centers != nullptr; ++i) {
        for (int64_t k = 0; k < clusters; k += kStep) {
          simd::at<A, kBytes>(centers + (f + i) * stride_ + k) +=
              simd::at<A, kBytes>(d + i * stride_ + k) * simd::at<A, kBytes>(mass_.get() + k);
        }
      }
      if (out_.features != nullptr) {
        Level::template run<simd::Transpose>(d, count, clusters, stride_, transposed_.get() + f,
                                             wide_stride_);
      }
    }
  }

  // The gradients of one slice of the rows of video b, after prepare(b). Its part of norm_sums is
  // added to `norm_sums`.
  PYSEG_INLINE void slice(int64_t b, int64_t slice, A* norm_sums) const {
    const auto [batch, rows, groups, width, clusters] = shape_;
    const int64_t begin = slice * kSliceRows, end = std::min(begin + kSliceRows, rows);
    for (int64_t n = begin; n < end; n += kRows) {
      const int64_t count = std::min(kRows, end - n), first = b * rows + n;
      const bool last = n + count == rows;
      // The memory of the gradient of features, or the next features if that is not needed.
      const simd::Lines then = out_.features == nullptr
                                   ? rows_ahead(shape_, in_.features, width, first + count, count)
                                   : simd::Lines(out_.features + first * width, count * width);
      const Operand<A> x =
          widen_features<T, kBytes>(in_.features + first * width, width, count, width, wide_.get());
      Level::template multiply<A>({.rows = count,
                                   .columns = simd::padded<A, kBytes>(clusters),
                                   .depth = width,
                                   .a = x.data,
                                   .a_row = x.row,
                                   .a_depth = 1,
                                   .b = d_.get(),
                                   .b_row = stride_,
                                   .c = gradient_.get(),
                                   .c_row = stride_,
                                   .accumulate = false,
                                   .ahead = {{in_.assignment + first * clusters, count * clusters},
                                             then,
                                             last ? next(b, saved_.grad) : simd::Lines()}});
      Level::template run<Softmax>(in_.assignment + first * clusters, count, clusters, norm_, n,
                                   probability_.get());
      for (int64_t i = 0; i < count; ++i) {
        assignment_gradient(first + i, n + i, probability_.get() + i * stride_,
                            gradient_.get() + i * stride_);
      }
      if (norm_) norm_sums_.add_chunk(norm_sums);
      if (out_.features != nullptr)
        features_gradient(first, count, last ? next(b, saved_.output) : simd::Lines());
    }
  }

 private:
  // Adds the rows from f on to the projection of a vector of columns from k on.
  template <bool kPartial>
  PYSEG_INLINE void project(int64_t b, int64_t f, int64_t k) const {
    const int64_t clusters = shape_.clusters, at = (b * shape_.width + f) * clusters + k;
    const int64_t count = std::min(kBlock, shape_.width - f);
    const T *const grad = saved_.grad + at, *const output = saved_.output + at;
    V block = {};
    for (int64_t i = 0; i < count; ++i) {
      V x, y;
      simd::load<kBytes, kPartial>(grad + i * clusters, clusters - k, A{0}, x);
      simd::load<kBytes, kPartial>(output + i * clusters, clusters - k, A{0}, y);
      block += x * y;
    }
    simd::at<A, kBytes>(projection_.get() + k) += block;
  }

  // Computes d of the same rows and columns, and adds their part of the shift.
  template <bool kPartial>
  PYSEG_INLINE void differentiate(int64_t b, int64_t f, int64_t k) const {
    const int64_t clusters = shape_.clusters, at = (b * shape_.width + f) * clusters + k;
    const int64_t count = std::min(kBlock, shape_.width - f);
    const T *const grad = saved_.grad + at, *const output = saved_.output + at;
    const T* const centers = in_.centers + f * clusters + k;
    A* const d = d_.get() + f * stride_ + k;
    const V scale = simd::at<A, kBytes>(scale_.get() + k);
    const V projection = simd::at<A, kBytes>(projection_.get() + k);
    V block = {};
    for (int64_t i = 0; i < count; ++i) {
      V x, y, center;
      simd::load<kBytes, kPartial>(grad + i * clusters, clusters - k, A{0}, x);
      simd::load<kBytes, kPartial>(output + i * clusters, clusters - k, A{0}, y);
      simd::load<kBytes, kPartial>(centers + i * clusters, clusters - k, A{0}, center);
      x = scale * (x - y * projection);
      simd::at<A, kBytes>(d + i * stride_) = x;
      block -= x * center;
    }
    simd::at<A, kBytes>(shift_.get() + k) += block;
  }

  PYSEG_INLINE void assignment_gradient(int64_t row, int64_t n, A* p, A* g) const {
    const int64_t clusters = shape_.clusters;
    const T* const assignment = in_.assignment + row * clusters;
    V total = {};
    for (int64_t k = 0; k < clusters; k += kStep) {
      V& value = simd::at<A, kBytes>(g + k);
      value += simd::at<A, kBytes>(shift_.get() + k);
      total += value * simd::at<A, kBytes>(p + k);
    }
    const A mean = simd::sum<A, kBytes>(total);
    narrow_saturated(mean, out_.attention[row]);
    assignment_detail::assignment_gradient_row<T, kBytes>(
        assignment, clusters, norm_, in_.norm.row_weights != nullptr, n, widen(in_.attention[row]),
        g, mean, p, out_.assignment + row * clusters, norm_sums_.by_weight(n),
        norm_sums_.by_bias(n));
  }

  PYSEG_INLINE simd::Lines next(int64_t b, const T* values) const {
    const int64_t size = shape_.width * shape_.clusters;
    return b + 1 < shape_.batch ? simd::Lines(values + (b + 1) * size, size) : simd::Lines();
  }

  // Uses the weights, which assignment_gradient left in place of the probabilities.
  PYSEG_INLINE void features_gradient(int64_t first, int64_t count, const simd::Lines& then) const {
    const int64_t width = shape_.width, clusters = shape_.clusters, n = first + count;
    T* const result = out_.features + first * width;
    A* c;
    int64_t c_row;
    if constexpr (std::is_same_v<T, A>) {
      c = result, c_row = width;
    } else {
      c = product_.get(), c_row = wide_stride_;
    }
    Level::template multiply<A>(
        {.rows = count,
         .columns = width,
         .depth = clusters,
         .a = probability_.get(),
         .a_row = stride_,
         .a_depth = 1,
         .b = transposed_.get(),
         .b_row = wide_stride_,
         .c = c,
         .c_row = c_row,
         .accumulate = false,
         .ahead = {rows_ahead(shape_, in_.features, width, n, count),
                   rows_ahead(shape_, out_.assignment, clusters, n, count), then}});
    if constexpr (!std::is_same_v<T, A>) {
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t f = 0; f < width; f += kStep) {
          simd::store<kBytes>(simd::at<A, kBytes>(c + i * c_row + f), width - f,
                              result + i * width + f);
        }
      }
    }
  }

  const VladShape& shape_;
  const VladInput<T, A>& in_;
  const VladSaved<T, A>& saved_;
  A eps_;
  const VladGradient<T, A>& out_;
  int64_t stride_, wide_stride_, chunk_;
  NormScratch<A> norm_;
  NormSums<A, kBytes> norm_sums_;
  simd::Buffer<A> probability_, gradient_, wide_, product_, d_, transposed_;
  simd::Buffer<A> scale_, projection_, mass_, shift_;
};

// Size of one block's part of the gradient of centers: F rows, padded, or two rows of factors.
template <typename T>
int64_t centers_size(const VladShape& shape) {
  const int64_t stride = simd::padded<Accumulate<T>>(shape.clusters);
  return (block_videos(shape.batch) == 1 ? 2 : shape.width) * stride;
}

struct Backward {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladInput<T, Accumulate<T>>& in,
                               const VladSaved<T, Accumulate<T>>& saved, double eps,
                               const VladGradient<T, Accumulate<T>>& out,
                               Accumulate<T>* centers_sums, Accumulate<T>* norm_sums, int64_t begin,
                               int64_t end) {
    using A = Accumulate<T>;
    const int64_t slices = slices_of(shape), videos = block_videos(shape.batch);
    const int64_t size = centers_size<T>(shape);
    const int64_t norm_size = norm_sums == nullptr ? 0 : norm_sums_size<T>(shape);
    const Gradient<T, Level> gradient(shape, in, saved, eps, out);
    std::fill(norm_sums + begin * norm_size, norm_sums + end * norm_size, A{0});
    while (begin < end) {
      const int64_t block = begin / slices, first = begin % slices;
      const int64_t last = std::min(slices, first + end - begin);
      A* const part = first == 0 ? centers_sums + block * size : nullptr;
      if (part != nullptr) std::fill_n(part, size, A{0});
      const int64_t b0 = block * videos, b1 = std::min(b0 + videos, shape.batch);
      for (int64_t b = b0; b < b1; ++b) {
        gradient.prepare(b, videos > 1 ? part : nullptr, videos > 1 ? nullptr : part);
        for (int64_t s = first; s < last; ++s) {
          gradient.slice(b, s, norm_sums + (block * slices + s) * norm_size);
        }
      }
      begin += last - first;
    }
  }
};

// Rows of the gradient of centers, computed from the factors of every video.
struct CentersOfOne {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladSaved<T, Accumulate<T>>& saved,
                               const Accumulate<T>* factors, T* centers, int64_t begin,
                               int64_t end) {
    constexpr int64_t kStep = simd::kLanes<Accumulate<T>, Level::kBytes>;
    const int64_t clusters = shape.clusters, whole = clusters / kStep * kStep;
    for (int64_t f = begin; f < end; ++f) {
      for (int64_t k = 0; k < whole; k += kStep) {
        sum<Level::kBytes, false>(shape, saved, factors, centers, f, k);
      }
      if (whole < clusters) sum<Level::kBytes, true>(shape, saved, factors, centers, f, whole);
    }
  }

  template <int kBytes, bool kPartial, typename T>
  PYSEG_INLINE static void sum(const VladShape& shape, const VladSaved<T, Accumulate<T>>& saved,
                               const Accumulate<T>* factors, T* centers, int64_t f, int64_t k) {
    using A = Accumulate<T>;
    using V = simd::Vector<A, kBytes>;
    const int64_t clusters = shape.clusters, stride = simd::padded<A>(clusters);
    V total = {};
    for (int64_t b0 = 0; b0 < shape.batch; b0 += kBlock) {
      V block = {};
      for (int64_t b = b0; b < std::min(b0 + kBlock, shape.batch); ++b) {
        const int64_t at = (b * shape.width + f) * clusters + k;
        const A* const own = factors + 2 * b * stride + k;
        V grad, output;
        simd::load<kBytes, kPartial>(saved.grad + at, clusters - k, A{0}, grad);
        simd::load<kBytes, kPartial>(saved.output + at, clusters - k, A{0}, output);
        block += simd::at<A, kBytes>(own) * (grad - output * simd::at<A, kBytes>(own + stride));
      }
      total += block;
    }
    simd::store<kBytes>(-total, clusters - k, centers + f * clusters + k);
  }
};

}  // namespace vlad_detail

// Forward of the videos begin <= b < end. K is at least 1, every other size may be 0.
template <typename T>
void vlad_forward(const VladShape& shape, const VladInput<T, Accumulate<T>>& in, double eps,
                  const VladOutput<T, Accumulate<T>>& out, int64_t begin, int64_t end,
                  Simd level = best_simd()) {
  simd::run<vlad_detail::Forward>(level, shape, in, eps, out, begin, end);
}

// Slices of a video's rows. For fewer videos than threads: vlad_forward_slices over B * vlad_slices
// and then vlad_forward_finish over B * vlad_columns give the same bits as vlad_forward.
inline int64_t vlad_slices(const VladShape& shape) { return vlad_detail::slices_of(shape); }

// Values in the workspace of the slices.
template <typename T>
int64_t vlad_forward_workspace(const VladShape& shape) {
  const int64_t stride = simd::padded<Accumulate<T>>(shape.clusters);
  return shape.batch * vlad_slices(shape) * vlad_detail::slice_sums_size(shape, stride);
}

template <typename T>
void vlad_forward_slices(const VladShape& shape, const VladInput<T, Accumulate<T>>& in,
                         Accumulate<T>* workspace, int64_t begin, int64_t end,
                         Simd level = best_simd()) {
  simd::run<vlad_detail::ForwardSlices>(level, shape, in, workspace, begin, end);
}

// Parts of a video's columns that vlad_forward_finish computes.
template <typename T>
int64_t vlad_columns(const VladShape& shape) {
  using A = Accumulate<T>;
  return simd::padded<A>(shape.clusters) / simd::kLanes<A, 64>;
}

template <typename T>
void vlad_forward_finish(const VladShape& shape, const VladInput<T, Accumulate<T>>& in, double eps,
                         const VladOutput<T, Accumulate<T>>& out, Accumulate<T>* workspace,
                         int64_t begin, int64_t end, Simd level = best_simd()) {
  simd::run<vlad_detail::ForwardFinish>(level, shape, in, eps, out, workspace, begin, end);
}

// Blocks of videos in which vlad_backward works.
inline int64_t vlad_blocks(const VladShape& shape) {
  const int64_t videos = vlad_detail::block_videos(shape.batch);
  return (shape.batch + videos - 1) / videos;
}

// Values that one block writes for the gradient of centers.
template <typename T>
int64_t vlad_centers_size(const VladShape& shape) {
  return vlad_detail::centers_size<T>(shape);
}

// Gradients of features (unless null), assignment and attention, for the tasks begin <= i < end of
// vlad_blocks * vlad_slices: task i is slice i % vlad_slices of the videos of a block. Block j
// writes the input of vlad_backward_centers to centers_sums[j] (of vlad_centers_size values). With
// norm.values, task i writes its part of norm_sums to norm_sums[i] (of norm_sums_size values), for
// add_partial_sums; with row weights, assignment_through_statistics then completes the gradient of
// the assignment. out.centers and out.norm_sums are not written.
template <typename T>
void vlad_backward(const VladShape& shape, const VladInput<T, Accumulate<T>>& in,
                   const VladSaved<T, Accumulate<T>>& saved, double eps,
                   const VladGradient<T, Accumulate<T>>& out, Accumulate<T>* centers_sums,
                   Accumulate<T>* norm_sums, int64_t begin, int64_t end, Simd level = best_simd()) {
  simd::run<vlad_detail::Backward>(level, shape, in, saved, eps, out, centers_sums, norm_sums,
                                   begin, end);
}

// The rows begin <= f < end of the gradient of centers, (F, K), after all tasks of vlad_backward.
template <typename T>
void vlad_backward_centers(const VladShape& shape, const VladSaved<T, Accumulate<T>>& saved,
                           const Accumulate<T>* centers_sums, T* centers, int64_t begin,
                           int64_t end, Simd level = best_simd()) {
  if (vlad_detail::block_videos(shape.batch) == 1) {
    simd::run<vlad_detail::CentersOfOne>(level, shape, saved, centers_sums, centers, begin, end);
  } else {
    add_partial_sums<T>(centers_sums, vlad_blocks(shape), vlad_centers_size<T>(shape),
                        shape.clusters, -1, centers, begin, end, level);
  }
}

}  // namespace pyseg
