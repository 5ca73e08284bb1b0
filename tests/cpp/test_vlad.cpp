// The CPU kernels of pyseg/vlad.h, assignment.h and moments.h against naive loops in double, at
// every vector level this processor has, and the 16-bit types against exact conversions.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "naive_vlad.h"
#include "pyseg/assignment.h"
#include "pyseg/moments.h"
#include "pyseg/vlad.h"

namespace {

using pyseg::Accumulate;
using pyseg::BFloat16;
using pyseg::Float16;
using pyseg::Simd;

// Calls function(begin, end) for parts of a range, as threads would.
template <typename Function>
void in_parts(int64_t size, int64_t parts, const Function& function) {
  for (int64_t i = 0; i < parts; ++i) function(size * i / parts, size * (i + 1) / parts);
}

template <typename T>
struct Gradients {
  std::vector<T> features, assignment, attention, centers;
  std::vector<Accumulate<T>> norm_sums;
};

template <typename T>
bool same_bits(const Gradients<T>& a, const Gradients<T>& b) {
  return same_bits(a.assignment, b.assignment) && same_bits(a.attention, b.attention) &&
         same_bits(a.centers, b.centers) && same_bits(a.norm_sums, b.norm_sums);
}

// One input of the kernels, and their calls in a given number of parts.
template <typename T>
struct Case {
  using A = Accumulate<T>;
  VladShape s{};
  double eps = 0;
  Simd level{};
  std::vector<T> x, z, a, c, grad;
  std::vector<A> norm_values, row_weights;
  std::vector<T> output;
  std::vector<A> mass, square_norm;

  pyseg::VladNorm<A> norm() const {
    return {norm_values.empty() ? nullptr : norm_values.data(),
            row_weights.empty() ? nullptr : row_weights.data()};
  }
  pyseg::VladInput<T, A> input() const { return {x.data(), z.data(), a.data(), c.data(), norm()}; }

  void forward(int64_t parts, bool by_slices) {
    const int64_t size = s.batch * s.width * s.clusters;
    output.assign(size, T{});
    mass.assign(s.batch * s.clusters, 0);
    square_norm = mass;
    const auto in = input();
    const pyseg::VladOutput<T, A> out{output.data(), mass.data(), square_norm.data()};
    if (!by_slices) {
      in_parts(s.batch, parts, [&](int64_t begin, int64_t end) {
        pyseg::vlad_forward<T>(s, in, eps, out, begin, end, level);
      });
      return;
    }
    const pyseg::simd::Buffer<A> sums(pyseg::vlad_forward_workspace<T>(s));
    in_parts(s.batch * pyseg::vlad_slices(s), parts, [&](int64_t begin, int64_t end) {
      pyseg::vlad_forward_slices<T>(s, in, sums.get(), begin, end, level);
    });
    in_parts(s.batch * pyseg::vlad_columns<T>(s), parts, [&](int64_t begin, int64_t end) {
      pyseg::vlad_forward_finish<T>(s, in, eps, out, sums.get(), begin, end, level);
    });
  }

  // The last step of a backward, which the callers of the kernels take.
  void complete(int64_t parts, const A* partial, int64_t tasks, Gradients<T>& d) const {
    if (norm_values.empty()) return;
    d.norm_sums.resize(2 * s.groups * s.clusters);
    in_parts(2 * s.groups, parts, [&](int64_t begin, int64_t end) {
      pyseg::add_partial_sums<A>(partial, tasks, pyseg::norm_sums_size<T>(s), s.clusters, 1,
                                 d.norm_sums.data(), begin, end, level);
    });
    if (row_weights.empty()) return;
    in_parts(s.batch * s.rows, parts, [&](int64_t begin, int64_t end) {
      pyseg::assignment_through_statistics<T>(s, z.data(), norm(), d.norm_sums.data(),
                                              d.assignment.data(), begin, end, level);
    });
  }

  Gradients<T> backward(int64_t parts, bool features = true) const {
    const int64_t rows = s.batch * s.rows, tasks = pyseg::vlad_blocks(s) * pyseg::vlad_slices(s);
    Gradients<T> d{std::vector<T>(rows * s.width),
                   std::vector<T>(rows * s.clusters),
                   std::vector<T>(rows),
                   std::vector<T>(s.width * s.clusters),
                   {}};
    const pyseg::simd::Buffer<A> centers(pyseg::vlad_blocks(s) * pyseg::vlad_centers_size<T>(s));
    const pyseg::simd::Buffer<A> sums(tasks * pyseg::norm_sums_size<T>(s));
    A* const norm_sums = norm_values.empty() ? nullptr : sums.get();
    const pyseg::VladSaved<T, A> saved{grad.data(), output.data(), mass.data(), square_norm.data()};
    const pyseg::VladGradient<T, A> out{features ? d.features.data() : nullptr, d.assignment.data(),
                                        d.attention.data(), nullptr, nullptr};
    in_parts(tasks, parts, [&](int64_t begin, int64_t end) {
      pyseg::vlad_backward<T>(s, input(), saved, eps, out, centers.get(), norm_sums, begin, end,
                              level);
    });
    in_parts(s.width, parts, [&](int64_t begin, int64_t end) {
      pyseg::vlad_backward_centers<T>(s, saved, centers.get(), d.centers.data(), begin, end, level);
    });
    complete(parts, norm_sums, tasks, d);
    return d;
  }

  std::vector<T> weights(int64_t parts, bool turned = false) const {
    std::vector<T> result(z.size());
    in_parts(s.batch * s.rows, parts, [&](int64_t begin, int64_t end) {
      pyseg::soft_assign<T>(s, z.data(), a.data(), norm(), turned, result.data(), begin, end,
                            level);
    });
    return result;
  }

  Gradients<T> weights_backward(const std::vector<T>& dw, int64_t parts,
                                bool turned = false) const {
    Gradients<T> d{{}, std::vector<T>(z.size()), std::vector<T>(a.size()), {}, {}};
    const int64_t blocks = pyseg::soft_assign_blocks(s);
    const pyseg::simd::Buffer<A> sums(blocks * pyseg::norm_sums_size<T>(s));
    in_parts(blocks, parts, [&](int64_t begin, int64_t end) {
      pyseg::soft_assign_backward<T>(s, dw.data(), turned, z.data(), a.data(), norm(),
                                     d.assignment.data(), d.attention.data(), sums.get(), begin,
                                     end, level);
    });
    complete(parts, sums.get(), blocks, d);
    return d;
  }
};

template <typename T>
Case<T> make_case(const VladShape& s, double eps, bool masked, const Norm& norm,
                  const std::vector<T>& z, Simd level, std::mt19937_64& generator) {
  const auto [B, N, G, F, K] = s;
  Case<T> c;
  c.s = s, c.eps = eps, c.level = level, c.z = z;
  c.x = random_values<T>(B * N * F, 1, generator);
  c.a = random_values<T>(B * N, 1, generator);
  c.c = random_values<T>(F * K, 1, generator);
  c.grad = random_values<T>(B * F * K, 1, generator);
  if (masked && B > 0) std::fill_n(c.a.begin(), N, T{});  // the first video
  c.norm_values.assign(norm.values.begin(), norm.values.end());
  c.row_weights.assign(norm.row_weights.begin(), norm.row_weights.end());
  return c;
}

// The expected results, the same for every level.
struct Oracle {
  Expected vlad;
  Doubles weights;  // of soft_assign
  Expected assigned;
};

template <typename T>
void test_level(Case<T>& test, const Oracle& oracle, const std::vector<T>& grad, double tolerance,
                const std::string& what) {
  test.forward(2, false);
  const auto output = test.output;
  expect_close(output, oracle.vlad.output, tolerance, what + " output");
  for (const int64_t parts : {1, 3}) {
    test.forward(parts, true);
    expect(same_bits(output, test.output), what + " output depends on who adds the slices");
  }
  const Gradients<T> d = test.backward(1);
  expect_close(d.features, oracle.vlad.features, tolerance, what + " gradient of features");
  expect_close(d.assignment, oracle.vlad.assignment, tolerance, what + " gradient of assignment");
  expect_close(d.attention, oracle.vlad.attention, tolerance, what + " gradient of attention");
  expect_close(d.centers, oracle.vlad.centers, tolerance, what + " gradient of centers");
  expect_close(d.norm_sums, oracle.vlad.norm_sums, tolerance, what + " norm_sums");
  for (const int64_t parts : {2, 5}) {
    const Gradients<T> again = test.backward(parts);
    expect(same_bits(d, again) && same_bits(d.features, again.features),
           what + " gradients depend on the parts");
  }
  expect(same_bits(d, test.backward(2, false)),
         what + " gradients depend on whether that of features is wanted");

  const Expected& assigned = oracle.assigned;
  expect_close(test.weights(2), oracle.weights, tolerance, what + " soft_assign");
  const Gradients<T> e = test.weights_backward(grad, 1);
  expect_close(e.assignment, assigned.assignment, tolerance, what + " soft_assign assignment");
  expect_close(e.attention, assigned.attention, tolerance, what + " soft_assign attention");
  expect_close(e.norm_sums, assigned.norm_sums, tolerance, what + " soft_assign norm_sums");
  expect(same_bits(e, test.weights_backward(grad, 3)),
         what + " gradients of soft_assign depend on the parts");
  expect(same_bits(test.weights(3, true), by_cluster(test.s, test.weights(1))) &&
             same_bits(e, test.weights_backward(by_cluster(test.s, grad), 3, true)),
         what + " soft_assign depends on the order of the weights");
}

template <typename T>
void test_shape(const VladShape& s, double eps, bool masked, Kind kind, double tolerance,
                const std::string& name) {
  const auto [B, N, G, F, K] = s;
  std::mt19937_64 generator(1);
  const auto z = random_values<T>(B * N * K, 3, generator);
  const Norm norm = make_norm(s, z, kind, generator);
  Case<T> test = make_case(s, eps, masked, norm, z, Simd{}, generator);
  const Doubles p = probabilities(s, z, norm);
  const auto grad = random_values<T>(p.size(), 1, generator);
  Doubles dw(p.size());
  Oracle oracle{naive(s, test.x, z, test.a, test.c, norm, test.grad, eps), Doubles(p.size()), {}};
  for (size_t i = 0; i < p.size(); ++i) {
    oracle.weights[i] = p[i] * value_of(test.a[i / K]);
    dw[i] = value_of(grad[i]);
  }
  naive_assignment(s, z, test.a, norm, p, dw, oracle.assigned);
  std::string shape;
  for (const int64_t size : {B, N, G, F, K}) shape += std::to_string(size) + " ";
  for (int level = 0; level <= static_cast<int>(pyseg::best_simd()); ++level) {
    test.level = static_cast<Simd>(level);
    test_level(test, oracle, grad, tolerance,
               name + " level " + std::to_string(level) + " norm " +
                   std::to_string(static_cast<int>(kind)) + " (" + shape + ")");
  }
}

void test_kernels() {
  [[maybe_unused]] bool turn = false;
  // batch, rows, groups, width, clusters; the last ones have several slices per video, blocks of
  // videos, and columns processed in several steps.
  for (const VladShape& s :
       {VladShape{2, 5, 1, 7, 3}, VladShape{1, 1, 1, 1, 1}, VladShape{3, 66, 3, 19, 17},
        VladShape{1, 130, 2, 33, 136}, VladShape{1, 40, 8, 140, 56}, VladShape{2, 0, 1, 3, 2},
        VladShape{0, 4, 2, 3, 2}, VladShape{1, 12, 2, 0, 3}, VladShape{40, 2, 2, 5, 20},
        VladShape{2, 1100, 4, 9, 6}, VladShape{1, 520, 1, 780, 3}}) {
    for (const Kind kind : {Kind::kPlain, Kind::kConstants, Kind::kStatistics}) {
      test_shape<float>(s, 1e-12, false, kind, 8e-6, "float");
#ifdef PYSEG_SANITIZE  // types of each size; each shape and each kind with both of these
      turn = !turn;
      if (turn) {
        test_shape<double>(s, 1e-12, false, kind, 1e-12, "double");
      } else {
        test_shape<BFloat16>(s, 1e-12, false, kind, 2e-2, "bfloat16");
      }
#else  // the fourth type; Python's tests have all of them, optimised too
      test_shape<Float16>(s, 1e-12, false, kind, 4e-3, "float16");
#endif
    }
    test_shape<float>(s, 1e-12, true, Kind::kPlain, 4e-6, "masked");
    test_shape<float>(s, 1e4, false, Kind::kPlain, 4e-6, "clamped");
  }
}

void test_batch(Simd level) {
  // The last video has the same bits alone and in a batch.
  const VladShape s{3, 700, 2, 21, 19}, one{1, 700, 2, 21, 19};
  std::mt19937_64 generator(2);
  const auto z = random_values<float>(3 * 700 * 19, 2, generator);
  Case<float> batch = make_case(s, 1e-12, false, {}, z, level, generator), alone = batch;
  alone.s = one;
  for (auto [values, size] : {std::pair{&alone.x, 700 * 21}, std::pair{&alone.z, 700 * 19},
                              std::pair{&alone.a, 700}, std::pair{&alone.grad, 21 * 19}}) {
    values->erase(values->begin(), values->begin() + 2 * size);
  }
  batch.forward(2, false);
  alone.forward(1, true);
  const Gradients<float> all = batch.backward(2), single = alone.backward(3);
  const auto ends_with = [](const std::vector<float>& whole, const std::vector<float>& end) {
    return std::equal(end.rbegin(), end.rend(), whole.rbegin());
  };
  expect(ends_with(batch.output, alone.output), "a video's output depends on its batch");
  expect(ends_with(all.features, single.features) && ends_with(all.assignment, single.assignment) &&
             ends_with(all.attention, single.attention),
         "a video's gradients depend on its batch");
}

template <typename T>
void test_moments(int64_t rows, int64_t columns, bool weighted, double offset, Simd level,
                  double tolerance) {
  using A = Accumulate<T>;
  std::mt19937_64 generator(3);
  auto x = random_values<T>(rows * columns, 1, generator);
  for (T& value : x) pyseg::narrow(pyseg::widen(value) + static_cast<A>(offset), value);
  std::vector<A> weights(rows);
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) total += weights[r] = weighted && r % 3 == 1 ? 0 : 1 + r % 5;
  for (int64_t r = 0; r < rows; ++r) weights[r] /= static_cast<A>(total);
  Doubles expected(2 * columns);
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        const double w = weighted ? weights[r] : 1 / static_cast<double>(rows);
        const double value = value_of(x[r * columns + c]);
        if (pass == 0) expected[c] += w * value;
        if (pass == 1) expected[columns + c] += w * (value - expected[c]) * (value - expected[c]);
      }
    }
  }
  for (int64_t r = 0; weighted && columns > 0 && r < rows; ++r) {
    if (weights[r] == 0) {
      std::fill_n(x.begin() + r * columns, columns, T{});
      pyseg::narrow(std::numeric_limits<A>::quiet_NaN(), x[r * columns]);
    }
  }
  const std::string what = "moments (" + std::to_string(rows) + " " + std::to_string(columns) +
                           ") level " + std::to_string(static_cast<int>(level));
  std::vector<A> first;
  for (const int64_t parts : {1, 3}) {
    const pyseg::simd::Buffer<A> workspace(pyseg::moments_workspace<T>(rows, columns));
    std::vector<A> result(2 * columns);
    in_parts(pyseg::moments_blocks(rows), parts, [&](int64_t begin, int64_t end) {
      pyseg::moments<T>(rows, columns, x.data(), weighted ? weights.data() : nullptr,
                        workspace.get(), begin, end, level);
    });
    pyseg::merge_moments<T>(rows, columns, x.data(), weighted ? weights.data() : nullptr,
                            workspace.get(), result.data(), level);
    if (parts == 1) first = result;
    expect(same_bits(first, result), what + " depend on the parts");
    const auto half = result.begin() + columns;
    expect_close(std::vector<A>(result.begin(), half),
                 Doubles(expected.begin(), expected.begin() + columns), tolerance, what + " mean",
                 1);
    expect_close(std::vector<A>(half, result.end()),
                 Doubles(expected.begin() + columns, expected.end()), 4 * tolerance,
                 what + " variance");
  }
}

void test_all_moments(Simd level) {
  for (const bool weighted : {false, true}) {
    for (const auto& [rows, columns] :
         {std::pair<int64_t, int64_t>{1, 1}, {7, 19}, {100, 130}, {3000, 5}, {0, 3}, {4, 0}}) {
      test_moments<float>(rows, columns, weighted, 0, level, 1e-6);
      test_moments<float>(rows, columns, weighted, 1000, level, 1e-6);  // it would cancel
      test_moments<double>(rows, columns, weighted, 1000, level, 1e-14);
      test_moments<BFloat16>(rows, columns, weighted, 0, level, 1e-6);
      test_moments<Float16>(rows, columns, weighted, 3, level, 1e-6);
    }
  }
}

void test_exp(Simd level) {
  // Softmax of (0, x) is 1 / (1 + e^x) and e^x / (1 + e^x): its second value tests exp.
  const VladShape s{1, 1, 1, 1, 2};
  for (double x = -100; x <= 0; x += 0.37) {
    const std::vector<float> features{1}, attention{1}, centers{0, 0};
    const std::vector<float> scores{0, static_cast<float>(x)};
    std::vector<float> output(2), mass(2), square_norm(2);
    pyseg::vlad_forward<float>(
        s, {features.data(), scores.data(), attention.data(), centers.data(), {}}, 1e-12,
        {output.data(), mass.data(), square_norm.data()}, 0, 1, level);
    const double e = std::exp(static_cast<double>(scores[1]));
    expect(std::fabs(mass[1] - e / (1 + e)) <= 3e-7 * e / (1 + e) + 2e-38,
           "exp(" + std::to_string(x) + ")");
  }
}

// Every 16-bit value survives the round trip; ties round to even.
template <typename T>
void test_conversion(const std::string& name, int mantissa) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T value{static_cast<uint16_t>(bits)};
    const float wide = pyseg::widen(value);
    T back;
    pyseg::narrow(wide, back);
    if (std::isnan(wide)) {
      expect(std::isnan(pyseg::widen(back)), name + " NaN " + std::to_string(bits));
      continue;
    }
    expect(back.bits == bits, name + " round trip of " + std::to_string(bits));
    const T next{static_cast<uint16_t>(bits + 1)};
    const float wide_next = pyseg::widen(next);
    if (std::isinf(wide) || !std::isfinite(wide_next)) continue;
    const float middle = static_cast<float>((double{wide} + wide_next) / 2);
    pyseg::narrow(middle, back);
    expect(back.bits == (bits % 2 == 0 ? bits : bits + 1),
           name + " ties to even after " + std::to_string(bits));
    pyseg::narrow(std::nextafter(middle, wide_next), back);
    expect(back.bits == bits + 1, name + " rounds up after " + std::to_string(bits));
  }
  T result;
  pyseg::narrow(1.f + std::ldexp(1.f, -mantissa), result);
  expect(pyseg::widen(result) == 1.f + std::ldexp(1.f, -mantissa), name + " digits");
  pyseg::narrow(std::numeric_limits<float>::max(), result);
  expect(std::isinf(pyseg::widen(result)), name + " overflow");
}

struct Convert {
  template <typename Level, typename T>
  PYSEG_INLINE static void run(const T* half, const float* values, int64_t size, float* wide,
                               T* narrow) {
    constexpr int kBytes = Level::kBytes;
    for (int64_t i = 0; i < size; i += pyseg::simd::kLanes<float, kBytes>) {
      pyseg::simd::Vector<float, kBytes> x;
      pyseg::simd::load<kBytes>(half + i, size - i, 0, x);
      pyseg::simd::store<kBytes>(x, size - i, wide + i);
      pyseg::simd::load<kBytes>(values + i, size - i, 0, x);
      pyseg::simd::store<kBytes>(x, size - i, narrow + i);
    }
  }
};

// Vectors are converted like single values, partial vectors too.
template <typename T>
void test_vector_conversion(const std::string& name, Simd level) {
  constexpr int64_t kSize = 0x10000 + 7;
  std::mt19937_64 generator(4);
  std::vector<T> half(kSize), narrow(kSize);
  std::vector<float> values(kSize), wide(kSize);
  for (int64_t i = 0; i < kSize; ++i) {
    half[i].bits = static_cast<uint16_t>(i);
    const auto bits = static_cast<uint32_t>(generator());
    std::memcpy(&values[i], &bits, sizeof(bits));
    if (i % 2 == 0) values[i] = pyseg::widen(half[i]) * (1 + (i % 5) * 0x1p-11f);
  }
  pyseg::simd::run<Convert>(level, half.data(), values.data(), kSize, wide.data(), narrow.data());
  bool same = true;
  for (int64_t i = 0; i < kSize; ++i) {
    const float expected = pyseg::widen(half[i]);
    T back;
    pyseg::narrow(values[i], back);
    same = same && std::memcmp(&wide[i], &expected, sizeof(float)) == 0;
    same = same && narrow[i].bits == back.bits;
  }
  expect(same, name + " vectors at level " + std::to_string(static_cast<int>(level)));
}

void test_saturation() {
  Float16 result;
  pyseg::narrow_saturated(-1e9f, result);
  expect(pyseg::widen(result) == -65504.f, "saturation");
  pyseg::narrow_saturated(std::numeric_limits<float>::infinity(), result);
  expect(std::isinf(pyseg::widen(result)), "an infinity is not hidden");
}

}  // namespace

int main() {
  test_kernels();
  for (int level = 0; level <= static_cast<int>(pyseg::best_simd()); ++level) {
    test_batch(static_cast<Simd>(level));
    test_all_moments(static_cast<Simd>(level));
    test_exp(static_cast<Simd>(level));
    test_vector_conversion<BFloat16>("bfloat16", static_cast<Simd>(level));
    test_vector_conversion<Float16>("float16", static_cast<Simd>(level));
  }
  test_conversion<BFloat16>("bfloat16", 7);
  test_conversion<Float16>("float16", 10);
  test_saturation();
  std::printf("vlad: %s\n", failures == 0 ? "ok" : "failed");
  return failures != 0;
}
