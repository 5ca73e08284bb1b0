// The CPU kernels of pyseg/rated_bce.h against naive loops in double, at every vector level this
// processor has.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "expect.h"
#include "naive_rated_bce.h"
#include "pyseg/rated_bce.h"

namespace {

using pyseg::BFloat16;
using pyseg::Float16;
using pyseg::Simd;

// Tolerances of a type: a gradient's last digit, and the relative error of a loss.
template <typename T>
constexpr double kDigit = 0;
template <>
constexpr double kDigit<double> = 1e-14;
template <>
constexpr double kDigit<float> = 3e-7;
template <>
constexpr double kDigit<BFloat16> = 0x1p-8;
template <>
constexpr double kDigit<Float16> = 0x1p-11;
template <typename T>
constexpr double kLossDigit = sizeof(T) == 8 ? 1e-14 : 6e-7;

template <typename T>
void test_case(const RatedBceCase<T>& example, bool correlated, Simd level, const std::string& name,
               Accumulate<T> absent_evidence = 0) {
  using A = Accumulate<T>;
  const auto in = example.input(correlated, absent_evidence);
  const int64_t B = in.batch, C = in.classes;
  std::vector<double> expected(B), expected_gradient(B * C);
  naive_rated_bce(in, expected, expected_gradient);
  std::vector<A> loss(B);
  std::vector<T> gradient(B * C);
  // In two parts, as two threads would.
  pyseg::rated_bce<T>(in, loss.data(), gradient.data(), 0, B / 2, level);
  pyseg::rated_bce<T>(in, loss.data(), gradient.data(), B / 2, B, level);
  const std::string what = name + " level " + std::to_string(static_cast<int>(level)) + " (" +
                           std::to_string(B) + ", " + std::to_string(C) + ")" +
                           (correlated ? " correlated " : " ");
  const double share = pyseg::rated_bce_share<T>(B);
  // The spacing of the smallest numbers of a 16-bit type.
  const double smallest = std::is_same_v<T, Float16> ? 0x1p-24 : 1e-37;
  double total = 0;
  for (int64_t b = 0; b < B; ++b) {
    expect(std::fabs(loss[b] - expected[b]) <= kLossDigit<T> * expected[b],
           what + "loss of row " + std::to_string(b) + " is " + std::to_string(loss[b]) + ", not " +
               std::to_string(expected[b]));
    total += expected[b];
    bool close = true;
    for (int64_t i = b * C; i < (b + 1) * C; ++i) {
      const double error = pyseg::widen(gradient[i]) - share * expected_gradient[i];
      const double digits = kDigit<T> * std::fabs(expected_gradient[i]) +
                            (sizeof(T) == 8 ? 1e-15 : 1.5e-7) * in.rated_weight;
      close = close && std::fabs(error) <= share * digits + smallest;  // a NaN is not
    }
    expect(close, what + "gradient of row " + std::to_string(b));
  }
  const double mean = B == 0 ? 0 : total / static_cast<double>(B);
  expect(std::fabs(pyseg::rated_bce_mean(loss.data(), B) - mean) <= kLossDigit<T> * mean,
         what + "mean");

  std::vector<A> loss_again(B);
  std::vector<T> gradient_again(B * C), scaled(B * C);
  pyseg::rated_bce<T>(in, loss_again.data(), gradient_again.data(), 0, B, level);
  const auto same = [](const auto& a, const auto& b) {
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
  };
  expect(same(loss, loss_again) && same(gradient, gradient_again),
         what + "depends on how rows are divided");
  std::fill(loss_again.begin(), loss_again.end(), A{});
  pyseg::rated_bce<T>(in, loss_again.data(), nullptr, 0, B, level);
  expect(same(loss, loss_again), what + "loss depends on whether the gradient is wanted");

  pyseg::rated_bce_scale<T>(gradient.data(), 4, scaled.data(), 0, B * C / 3, level);
  pyseg::rated_bce_scale<T>(gradient.data(), 4, scaled.data(), B * C / 3, B * C, level);
  bool fourfold = true;
  for (int64_t i = 0; i < B * C; ++i) {
    fourfold = fourfold && pyseg::widen(scaled[i]) == 4 * pyseg::widen(gradient[i]);
  }
  expect(fourfold, what + "scaled");
}

template <typename T>
void test_type(Simd level, const std::string& name) {
  for (const auto& [batch, classes] :
       {std::pair{1, 1}, std::pair{3, 5}, std::pair{7, 16}, std::pair{2, 33}, std::pair{5, 257},
        std::pair{2, 1000}, std::pair{4, 3862}, std::pair{0, 5}, std::pair{3, 0}}) {
    for (const bool correlated : {false, true}) {
      test_case(RatedBceCase<T>(batch, classes, 4, 3), correlated, level, name);
    }
  }
  test_case(RatedBceCase<T>(4, 40, 40, 3), true, level, name + " rated much");
  test_case(RatedBceCase<T>(4, 40, 6, 3), true, level, name + " absent evidence",
            Accumulate<T>{0.5});
  test_case(RatedBceCase<T>(4, 300, 3, 100), true, level, name + " large");
  RatedBceCase<T> extreme(2, 40, 4, 1);
  for (size_t i = 0; i < extreme.logits.size(); ++i) {
    pyseg::narrow(static_cast<Accumulate<T>>(i % 2 == 0 ? 1e4 : -1e4), extreme.logits[i]);
  }
  test_case(extreme, true, level, name + " extreme");
}

// A NaN affects its own row only.
void test_nan(Simd level) {
  RatedBceCase<float> example(3, 100, 4, 1);
  example.logits[150] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> loss(3), gradient(300);
  pyseg::rated_bce<float>(example.input(true, 0), loss.data(), gradient.data(), 0, 3, level);
  for (int64_t i = 0; i < 300; ++i) {
    expect(std::isnan(gradient[i]) == (i == 150), "gradient beside a NaN");
  }
  expect(std::isfinite(loss[0]) && std::isnan(loss[1]) && std::isfinite(loss[2]),
         "losses beside a NaN");
}

struct Log1p {
  template <typename Level>
  PYSEG_INLINE static void run(const float* source, float* result) {
    pyseg::simd::Vector<float, Level::kBytes> x;
    pyseg::simd::load<Level::kBytes>(source, x);
    pyseg::rated_bce_detail::log1p_unit<Level::kBytes>(x);
    pyseg::simd::store<Level::kBytes>(x, result);
  }
};

void test_log1p(Simd level) {
  constexpr uint32_t kOne = std::bit_cast<uint32_t>(1.f), kStep = 5003;
  double worst = 0;
  for (uint32_t bits = std::bit_cast<uint32_t>(std::numeric_limits<float>::min()); bits <= kOne;
       bits += kStep) {
    float x[16], found[16];  // the widest vector; the narrowest has 4 lanes
    for (uint32_t i = 0; i < 16; ++i) x[i] = std::bit_cast<float>(std::min(bits + i, kOne));
    const float* const source = x;
    float* const result = found;
    pyseg::simd::run<Log1p>(level, source, result);
    for (uint32_t i = 0; i < 4; ++i) {
      const double exact = std::log1p(static_cast<double>(x[i]));
      const float rounded = static_cast<float>(exact);
      const double unit = static_cast<double>(std::nextafter(rounded, 2.f)) - rounded;
      worst = std::max(worst, std::fabs(found[i] - exact) / unit);
    }
  }
  expect(worst <= 2, "log1p is off by " + std::to_string(worst) + " units in the last place");
}

}  // namespace

int main() {
  for (int i = 0; i <= static_cast<int>(pyseg::best_simd()); ++i) {
    const auto level = static_cast<Simd>(i);
    test_type<double>(level, "double");
    test_type<float>(level, "float");
    test_type<BFloat16>(level, "bfloat16");
    test_type<Float16>(level, "float16");
    test_nan(level);
    test_log1p(level);
  }
  std::printf("rated_bce: %s\n", failures == 0 ? "ok" : "failed");
  return failures != 0;
}
