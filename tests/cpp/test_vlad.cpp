// The CPU kernels of pyseg/vlad.h against naive loops in double, at every vector level this
// processor has, and the 16-bit types against exact conversions.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "pyseg/vlad.h"

namespace {

using pyseg::Accumulate;
using pyseg::BFloat16;
using pyseg::Float16;
using pyseg::Simd;
using pyseg::VladShape;
using Doubles = std::vector<double>;

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

template <typename T>
double value_of(T x) {
  return pyseg::widen(x);
}

template <typename T>
std::vector<T> random_values(int64_t size, double scale, std::mt19937_64& generator) {
  std::normal_distribution<double> normal(0, scale);
  std::vector<T> result(size);
  for (T& x : result) pyseg::narrow(static_cast<Accumulate<T>>(normal(generator)), x);
  return result;
}

struct Expected {
  Doubles output, features, assignment, attention, centers;
};

// The definition, and its gradients by the chain rule written out one step at a time.
template <typename T>
Expected naive(const VladShape& s, const std::vector<T>& x, const std::vector<T>& z,
               const std::vector<T>& a, const std::vector<T>& c, const std::vector<T>& grad,
               double eps) {
  const auto [B, N, F, K] = s;
  Expected e{Doubles(B * F * K), Doubles(B * N * F), Doubles(B * N * K), Doubles(B * N),
             Doubles(F * K)};
  for (int64_t b = 0; b < B; ++b) {
    Doubles p(N * K), v(F * K), dv(F * K);
    for (int64_t n = 0; n < N; ++n) {
      double largest = -std::numeric_limits<double>::infinity(), total = 0;
      for (int64_t k = 0; k < K; ++k) {
        largest = std::fmax(largest, value_of(z[(b * N + n) * K + k]));
      }
      for (int64_t k = 0; k < K; ++k) {
        p[n * K + k] = std::exp(value_of(z[(b * N + n) * K + k]) - largest);
        total += p[n * K + k];
      }
      for (int64_t k = 0; k < K; ++k) p[n * K + k] /= total;
    }
    for (int64_t k = 0; k < K; ++k) {
      double norm = 0, along = 0;
      for (int64_t f = 0; f < F; ++f) {
        for (int64_t n = 0; n < N; ++n) {
          v[f * K + k] += value_of(a[b * N + n]) * p[n * K + k] *
                          (value_of(x[(b * N + n) * F + f]) - value_of(c[f * K + k]));
        }
        norm += v[f * K + k] * v[f * K + k];
      }
      const double scale = 1 / std::sqrt(std::fmax(norm, eps));
      for (int64_t f = 0; f < F; ++f) {
        e.output[(b * F + f) * K + k] = v[f * K + k] * scale;
        along += value_of(grad[(b * F + f) * K + k]) * v[f * K + k];
      }
      for (int64_t f = 0; f < F; ++f) {
        const double direct = value_of(grad[(b * F + f) * K + k]) * scale;
        dv[f * K + k] = norm < eps ? direct : direct - along * v[f * K + k] * scale * scale * scale;
      }
    }
    for (int64_t n = 0; n < N; ++n) {
      const double attention = value_of(a[b * N + n]);
      Doubles dp(K);
      double mean = 0;
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t f = 0; f < F; ++f) {
          const double residual = value_of(x[(b * N + n) * F + f]) - value_of(c[f * K + k]);
          dp[k] += dv[f * K + k] * residual;
          e.features[(b * N + n) * F + f] += attention * p[n * K + k] * dv[f * K + k];
          e.centers[f * K + k] -= attention * p[n * K + k] * dv[f * K + k];
        }
        mean += p[n * K + k] * dp[k];
      }
      e.attention[b * N + n] = mean;
      for (int64_t k = 0; k < K; ++k) {
        e.assignment[(b * N + n) * K + k] = attention * p[n * K + k] * (dp[k] - mean);
      }
    }
  }
  return e;
}

template <typename T>
void expect_close(const std::vector<T>& actual, const Doubles& expected, double tolerance,
                  const std::string& what) {
  double largest = 1e-2, error = 0;  // where F is 1 the gradients cancel to 0
  for (const double x : expected) largest = std::fmax(largest, std::fabs(x));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(value_of(actual[i]) - expected[i]);
    if (!(difference <= error)) error = difference;  // a NaN counts
  }
  expect(error <= tolerance * largest, what + ": error " + std::to_string(error / largest));
}

template <typename T>
void test_shape(const VladShape& s, double eps, bool masked, Simd level, double tolerance,
                const std::string& name) {
  const auto [B, N, F, K] = s;
  using A = Accumulate<T>;
  std::mt19937_64 generator(1);
  const auto x = random_values<T>(B * N * F, 1, generator);
  const auto z = random_values<T>(B * N * K, 3, generator);
  auto a = random_values<T>(B * N, 1, generator);
  const auto c = random_values<T>(F * K, 1, generator);
  const auto grad = random_values<T>(B * F * K, 1, generator);
  if (masked && B > 0) std::fill_n(a.begin(), N, T{});  // the first video
  const Expected expected = naive(s, x, z, a, c, grad, eps);

  std::vector<T> output(B * F * K), dx(B * N * F), dz(B * N * K), da(B * N), dc(F * K);
  std::vector<A> mass(B * K), square_norm(B * K), columns(B * 2 * K);
  const pyseg::VladInput<T> in{x.data(), z.data(), a.data(), c.data()};
  const pyseg::VladOutput<T, A> out{output.data(), mass.data(), square_norm.data()};
  const pyseg::VladSaved<T, A> saved{grad.data(), output.data(), mass.data(), square_norm.data()};
  const pyseg::VladGradient<T> gradient{dx.data(), dz.data(), da.data()};
  // In two parts, as two threads would.
  for (const auto& [begin, end] : {std::pair{int64_t{0}, B / 2}, std::pair{B / 2, B}}) {
    pyseg::vlad_forward<T>(s, in, eps, out, begin, end, level);
    pyseg::vlad_backward<T>(s, in, saved, eps, gradient, columns.data(), begin, end, level);
  }
  for (const auto& [begin, end] : {std::pair{int64_t{0}, F / 2}, std::pair{F / 2, F}}) {
    pyseg::vlad_backward_centers<T>(s, saved, columns.data(), dc.data(), begin, end, level);
  }
  const std::string what = name + " level " + std::to_string(static_cast<int>(level)) + " (" +
                           std::to_string(B) + ", " + std::to_string(N) + ", " + std::to_string(F) +
                           ", " + std::to_string(K) + ") ";
  expect_close(output, expected.output, tolerance, what + "output");
  expect_close(dx, expected.features, tolerance, what + "gradient of features");
  expect_close(dz, expected.assignment, tolerance, what + "gradient of assignment");
  expect_close(da, expected.attention, tolerance, what + "gradient of attention");
  expect_close(dc, expected.centers, tolerance, what + "gradient of centers");

  const auto before = dz;
  const pyseg::VladGradient<T> partly{nullptr, dz.data(), da.data()};
  pyseg::vlad_backward<T>(s, in, saved, eps, partly, columns.data(), 0, B, level);
  expect(dz.empty() || std::memcmp(before.data(), dz.data(), dz.size() * sizeof(T)) == 0,
         what + "gradients depend on whether that of features is wanted");
}

void test_kernels(Simd level) {
  for (const VladShape& s : {VladShape{2, 5, 7, 3}, VladShape{1, 1, 1, 1}, VladShape{3, 65, 19, 17},
                             VladShape{2, 130, 33, 136}, VladShape{1, 40, 140, 56},
                             VladShape{2, 0, 3, 2}, VladShape{0, 4, 3, 2}, VladShape{1, 2, 0, 3}}) {
    test_shape<double>(s, 1e-12, false, level, 1e-13, "double");
    test_shape<float>(s, 1e-12, false, level, 4e-6, "float");
    test_shape<BFloat16>(s, 1e-12, false, level, 2e-2, "bfloat16");
    test_shape<Float16>(s, 1e-12, false, level, 4e-3, "float16");
    test_shape<float>(s, 1e-12, true, level, 4e-6, "masked");
    test_shape<float>(s, 1e4, false, level, 4e-6, "clamped");
  }
}

void test_exp(Simd level) {
  // Softmax of (0, x) is 1 / (1 + e^x) and e^x / (1 + e^x): its second value tests exp.
  const VladShape s{1, 1, 1, 2};
  for (double x = -100; x <= 0; x += 0.37) {
    const std::vector<float> features{1}, attention{1}, centers{0, 0};
    const std::vector<float> scores{0, static_cast<float>(x)};
    std::vector<float> output(2), mass(2), square_norm(2);
    pyseg::vlad_forward<float>(
        s, {features.data(), scores.data(), attention.data(), centers.data()}, 1e-12,
        {output.data(), mass.data(), square_norm.data()}, 0, 1, level);
    const double e = std::exp(static_cast<double>(scores[1]));
    expect(std::fabs(mass[1] - e / (1 + e)) <= 3e-7 * e / (1 + e) + 2e-38,
           "exp(" + std::to_string(x) + ")");
  }
}

// Every 16-bit value survives the round trip; halves between neighbours go to the even one.
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

void test_saturation() {
  Float16 result;
  pyseg::narrow_saturated(-1e9f, result);
  expect(pyseg::widen(result) == -65504.f, "saturation");
  pyseg::narrow_saturated(std::numeric_limits<float>::infinity(), result);
  expect(std::isinf(pyseg::widen(result)), "an infinity is not hidden");
}

}  // namespace

int main() {
  for (int level = 0; level <= static_cast<int>(pyseg::best_simd()); ++level) {
    test_kernels(static_cast<Simd>(level));
    test_exp(static_cast<Simd>(level));
  }
  test_conversion<BFloat16>("bfloat16", 7);
  test_conversion<Float16>("float16", 10);
  test_saturation();
  std::printf("vlad: %s\n", failures == 0 ? "ok" : "failed");
  return failures != 0;
}
