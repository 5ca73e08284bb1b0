// Soft-assignment aggregation of NetVLAD (Arandjelovic et al. 2016, equation 4) and NeXtVLAD (Lin
// et al. 2018, equations 2 to 5) on the CPU, forward and backward. No framework: raw pointers and
// sizes; the caller divides the range of videos among its threads.
//
//   w[n,k] = attention[n] softmax_k(assignment[n,:])          n: the T * G rows of one video
//   v[f,k] = sum_n w[n,k] (features[n,f] - centers[f,k])
//   output[f,k] = v[f,k] / sqrt(max(sum_f v[f,k]^2, eps))
//
// Values are float, double, BFloat16 or Float16; sums are kept in Accumulate<T>. Every video is
// computed by one thread in a fixed order, so results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "pyseg/float16.h"
#include "pyseg/simd.h"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace vlad_detail {

// Rows of one video that are worked on at a time: their weights and features stay in the cache.
constexpr int64_t kRows = 64;
// Long sums are taken in blocks of this length, then over blocks: less rounding error than one
// chain.
constexpr int64_t kBlock = 16;

template <typename T>
PYSEG_INLINE void widen_row(const T* source, int64_t size, Accumulate<T>* result) {
  for (int64_t i = 0; i < size; ++i) result[i] = widen(source[i]);
}

// Rows of features as the products read them: in place, or widened into `scratch`.
template <typename T>
PYSEG_INLINE const Accumulate<T>* widen_rows(const T* source, int64_t size,
                                             Accumulate<T>* scratch) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    return source;
  } else {
    widen_row(source, size, scratch);
    return scratch;
  }
}

// probability[i,:] = softmax(assignment[i,:]) for `rows` rows; padding becomes 0.
template <typename T, int kBytes>
PYSEG_INLINE void softmax_rows(const T* assignment, int64_t rows, int64_t clusters,
                               Accumulate<T>* probability, int64_t stride) {
  using A = Accumulate<T>;
  for (int64_t i = 0; i < rows; ++i) {
    A* row = probability + i * stride;
    widen_row(assignment + i * clusters, clusters, row);
    std::fill(row + clusters, row + stride, -std::numeric_limits<A>::infinity());
    simd::softmax<A, kBytes>(row, stride);
  }
}

template <typename A, int kBytes>
PYSEG_INLINE void add_row(const A* source, int64_t size, A* result) {
  for (int64_t k = 0; k < size; k += simd::kLanes<A, kBytes>) {
    simd::at<A, kBytes>(result + k) += simd::at<A, kBytes>(source + k);
  }
}

// result[j,i] = source[i,j], by blocks of a cache line.
template <typename A>
PYSEG_INLINE void transpose(const A* source, int64_t rows, int64_t columns, int64_t stride,
                            A* __restrict result, int64_t result_stride) {
  constexpr int64_t kLine = 64 / sizeof(A);
  for (int64_t i0 = 0; i0 < rows; i0 += kLine) {
    const int64_t i1 = std::min(i0 + kLine, rows);
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = i0; i < i1; ++i) result[j * result_stride + i] = source[i * stride + j];
    }
  }
}

template <typename T, typename Level>
PYSEG_INLINE void forward(const VladShape& shape, const VladInput<T>& in, double eps,
                          const VladOutput<T, Accumulate<T>>& out, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int kBytes = Level::kBytes;
  constexpr int64_t kStep = simd::kLanes<A, kBytes>;
  using V = simd::Vector<A, kBytes>;
  const auto [batch, rows, width, clusters] = shape;
  const int64_t stride = simd::padded<A>(clusters);
  const simd::Buffer<A> weight(kRows * stride), wide(kRows * width), vlad(width * stride);
  const simd::Buffer<A> mass(stride), norm(stride), partial(stride), center(stride);

  for (int64_t b = begin; b < end; ++b) {
    std::fill_n(vlad.get(), width * stride, A{0});
    std::fill_n(mass.get(), stride, A{0});
    std::fill_n(norm.get(), stride, A{0});
    for (int64_t n = 0; n < rows; n += kRows) {
      const int64_t count = std::min(kRows, rows - n), first = b * rows + n;
      softmax_rows<T, kBytes>(in.assignment + first * clusters, count, clusters, weight.get(),
                              stride);
      std::fill_n(partial.get(), stride, A{0});
      for (int64_t i = 0; i < count; ++i) {
        const A attention = widen(in.attention[first + i]);
        for (int64_t k = 0; k < stride; k += kStep) {
          V& w = simd::at<A, kBytes>(weight.get() + i * stride + k);
          w *= attention;
          simd::at<A, kBytes>(partial.get() + k) += w;
        }
      }
      add_row<A, kBytes>(partial.get(), stride, mass.get());
      const A* x = widen_rows(in.features + first * width, count * width, wide.get());
      Level::template multiply<A>({.rows = width,
                                   .columns = stride,
                                   .depth = count,
                                   .a = x,
                                   .a_row = 1,
                                   .a_depth = width,
                                   .b = weight.get(),
                                   .b_row = stride,
                                   .c = vlad.get(),
                                   .c_row = stride,
                                   .accumulate = true});
    }
    for (int64_t f0 = 0; f0 < width; f0 += kBlock) {
      std::fill_n(partial.get(), stride, A{0});
      for (int64_t f = f0; f < std::min(f0 + kBlock, width); ++f) {
        widen_row(in.centers + f * clusters, clusters, center.get());
        for (int64_t k = 0; k < stride; k += kStep) {
          V& v = simd::at<A, kBytes>(vlad.get() + f * stride + k);
          v -= simd::at<A, kBytes>(center.get() + k) * simd::at<A, kBytes>(mass.get() + k);
          simd::at<A, kBytes>(partial.get() + k) += v * v;
        }
      }
      add_row<A, kBytes>(partial.get(), stride, norm.get());
    }
    std::copy_n(mass.get(), clusters, out.mass + b * clusters);
    std::copy_n(norm.get(), clusters, out.square_norm + b * clusters);
    for (int64_t k = 0; k < clusters; ++k) {
      norm.get()[k] = 1 / std::sqrt(std::max(norm.get()[k], static_cast<A>(eps)));
    }
    for (int64_t f = 0; f < width; ++f) {
      T* result = out.output + (b * width + f) * clusters;
      const A* v = vlad.get() + f * stride;
      for (int64_t k = 0; k < clusters; ++k) narrow(v[k] * norm.get()[k], result[k]);
    }
  }
}

// With d the gradient of v (see column_gradients), p the softmax and s[k] = -sum_f d[f,k] c[f,k]:
//   g[n,k] = sum_f features[n,f] d[f,k] + s[k]                 the gradient of w
//   d_attention[n] = sum_k p[n,k] g[n,k]
//   d_assignment[n,k] = attention[n] p[n,k] (g[n,k] - d_attention[n])
//   d_features[n,f] = attention[n] sum_k p[n,k] d[f,k]
template <typename T, typename Level>
PYSEG_INLINE void backward(const VladShape& shape, const VladInput<T>& in,
                           const VladSaved<T, Accumulate<T>>& saved, double eps,
                           const VladGradient<T>& out, Accumulate<T>* columns, int64_t begin,
                           int64_t end) {
  using A = Accumulate<T>;
  constexpr int kBytes = Level::kBytes;
  constexpr int64_t kStep = simd::kLanes<A, kBytes>;
  using V = simd::Vector<A, kBytes>;
  const auto [batch, rows, width, clusters] = shape;
  const int64_t stride = simd::padded<A>(clusters), wide_stride = simd::padded<A>(width);
  const simd::Buffer<A> probability(kRows * stride), gradient(kRows * stride);
  const simd::Buffer<A> wide(kRows * width), product(kRows * wide_stride);
  const simd::Buffer<A> d(width * stride), transposed(clusters * wide_stride), shifts(stride),
      partial(stride);

  for (int64_t b = begin; b < end; ++b) {
    const T* __restrict grad = saved.grad + b * width * clusters;
    const T* __restrict output = saved.output + b * width * clusters;
    A* __restrict scale = columns + b * 2 * clusters;
    A* __restrict projection = scale + clusters;
    A* __restrict shift = shifts.get();
    A* __restrict block = partial.get();
    std::fill_n(projection, clusters, A{0});
    for (int64_t f0 = 0; f0 < width; f0 += kBlock) {
      std::fill_n(block, clusters, A{0});
      for (int64_t f = f0; f < std::min(f0 + kBlock, width); ++f) {
        for (int64_t k = 0; k < clusters; ++k) {
          block[k] += widen(grad[f * clusters + k]) * widen(output[f * clusters + k]);
        }
      }
      for (int64_t k = 0; k < clusters; ++k) projection[k] += block[k];
    }
    for (int64_t k = 0; k < clusters; ++k) {
      const A norm = saved.square_norm[b * clusters + k];
      const bool clamped = norm < static_cast<A>(eps);
      scale[k] = 1 / std::sqrt(clamped ? static_cast<A>(eps) : norm);
      if (clamped) projection[k] = 0;
    }
    std::fill_n(shift, clusters, A{0});
    for (int64_t f0 = 0; f0 < width; f0 += kBlock) {
      std::fill_n(block, clusters, A{0});
      for (int64_t f = f0; f < std::min(f0 + kBlock, width); ++f) {
        A* __restrict row = d.get() + f * stride;
        for (int64_t k = 0; k < clusters; ++k) {
          const int64_t i = f * clusters + k;
          row[k] = scale[k] * (widen(grad[i]) - widen(output[i]) * projection[k]);
          block[k] -= row[k] * widen(in.centers[i]);
        }
      }
      for (int64_t k = 0; k < clusters; ++k) shift[k] += block[k];
    }
    if (out.features != nullptr) {
      transpose(d.get(), width, clusters, stride, transposed.get(), wide_stride);
    }

    for (int64_t n = 0; n < rows; n += kRows) {
      const int64_t count = std::min(kRows, rows - n), first = b * rows + n;
      softmax_rows<T, kBytes>(in.assignment + first * clusters, count, clusters, probability.get(),
                              stride);
      const A* x = widen_rows(in.features + first * width, count * width, wide.get());
      Level::template multiply<A>({.rows = count,
                                   .columns = stride,
                                   .depth = width,
                                   .a = x,
                                   .a_row = width,
                                   .a_depth = 1,
                                   .b = d.get(),
                                   .b_row = stride,
                                   .c = gradient.get(),
                                   .c_row = stride,
                                   .accumulate = false});
      for (int64_t i = 0; i < count; ++i) {
        const A* p = probability.get() + i * stride;
        A* g = gradient.get() + i * stride;
        V total = {};
        for (int64_t k = 0; k < stride; k += kStep) {
          V& value = simd::at<A, kBytes>(g + k);
          value += simd::at<A, kBytes>(shift + k);
          total += value * simd::at<A, kBytes>(p + k);
        }
        const A mean = simd::sum<A, kBytes>(total);
        const A attention = widen(in.attention[first + i]);
        narrow_saturated(mean, out.attention[first + i]);
        T* result = out.assignment + (first + i) * clusters;
        for (int64_t k = 0; k < clusters; ++k) {
          narrow(attention * p[k] * (g[k] - mean), result[k]);
        }
      }
      if (out.features == nullptr) continue;
      Level::template multiply<A>({.rows = count,
                                   .columns = wide_stride,
                                   .depth = clusters,
                                   .a = probability.get(),
                                   .a_row = stride,
                                   .a_depth = 1,
                                   .b = transposed.get(),
                                   .b_row = wide_stride,
                                   .c = product.get(),
                                   .c_row = wide_stride,
                                   .accumulate = false});
      for (int64_t i = 0; i < count; ++i) {
        const A attention = widen(in.attention[first + i]);
        T* result = out.features + (first + i) * width;
        const A* value = product.get() + i * wide_stride;
        for (int64_t f = 0; f < width; ++f) narrow(attention * value[f], result[f]);
      }
    }
  }
}

// d_centers[f,k] = -sum_b mass[b,k] d[b,f,k], in the order of b.
template <typename T>
PYSEG_INLINE void backward_centers(const VladShape& shape, const VladSaved<T, Accumulate<T>>& saved,
                                   const Accumulate<T>* columns, T* out, int64_t begin,
                                   int64_t end) {
  using A = Accumulate<T>;
  const auto [batch, rows, width, clusters] = shape;
  const simd::Buffer<A> sums(clusters), partial(clusters);
  A* __restrict sum = sums.get();
  A* __restrict block = partial.get();
  for (int64_t f = begin; f < end; ++f) {
    std::fill_n(sum, clusters, A{0});
    for (int64_t b0 = 0; b0 < batch; b0 += kBlock) {
      std::fill_n(block, clusters, A{0});
      for (int64_t b = b0; b < std::min(b0 + kBlock, batch); ++b) {
        const A* mass = saved.mass + b * clusters;
        const A* scale = columns + b * 2 * clusters;
        const A* projection = scale + clusters;
        const T* grad = saved.grad + (b * width + f) * clusters;
        const T* output = saved.output + (b * width + f) * clusters;
        for (int64_t k = 0; k < clusters; ++k) {
          block[k] -= mass[k] * (scale[k] * (widen(grad[k]) - widen(output[k]) * projection[k]));
        }
      }
      for (int64_t k = 0; k < clusters; ++k) sum[k] += block[k];
    }
    for (int64_t k = 0; k < clusters; ++k) narrow(sum[k], out[f * clusters + k]);
  }
}

struct Forward {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladInput<T>& in, double eps,
                               const VladOutput<T, Accumulate<T>>& out, int64_t begin,
                               int64_t end) {
    forward<T, Level>(shape, in, eps, out, begin, end);
  }
};

struct Backward {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladInput<T>& in,
                               const VladSaved<T, Accumulate<T>>& saved, double eps,
                               const VladGradient<T>& out, Accumulate<T>* columns, int64_t begin,
                               int64_t end) {
    backward<T, Level>(shape, in, saved, eps, out, columns, begin, end);
  }
};

struct BackwardCenters {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const VladShape& shape, const VladSaved<T, Accumulate<T>>& saved,
                               const Accumulate<T>* columns, T* out, int64_t begin, int64_t end) {
    backward_centers<T>(shape, saved, columns, out, begin, end);
  }
};

}  // namespace vlad_detail

// Forward of the videos begin <= b < end. K is at least 1, every other size may be 0.
template <typename T>
void vlad_forward(const VladShape& shape, const VladInput<T>& in, double eps,
                  const VladOutput<T, Accumulate<T>>& out, int64_t begin, int64_t end,
                  Simd level = best_simd()) {
  simd::run<vlad_detail::Forward>(level, shape, in, eps, out, begin, end);
}

// Gradients of features (unless null), assignment and attention of the videos begin <= b < end.
// The gradient of v is d = scale (grad - output projection), where projection = sum_f grad output
// and scale = 1 / |v|; for a column with |v|^2 < eps they are 0 and 1 / sqrt(eps). Both are written
// to columns, (B, 2, K), for vlad_backward_centers.
template <typename T>
void vlad_backward(const VladShape& shape, const VladInput<T>& in,
                   const VladSaved<T, Accumulate<T>>& saved, double eps, const VladGradient<T>& out,
                   Accumulate<T>* columns, int64_t begin, int64_t end, Simd level = best_simd()) {
  simd::run<vlad_detail::Backward>(level, shape, in, saved, eps, out, columns, begin, end);
}

// Gradient of centers, (F, K), for the rows begin <= f < end, once vlad_backward has done all
// videos.
template <typename T>
void vlad_backward_centers(const VladShape& shape, const VladSaved<T, Accumulate<T>>& saved,
                           const Accumulate<T>* columns, T* out, int64_t begin, int64_t end,
                           Simd level = best_simd()) {
  simd::run<vlad_detail::BackwardCenters>(level, shape, saved, columns, out, begin, end);
}

}  // namespace pyseg
