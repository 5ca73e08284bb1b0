// The VLAD aggregation and its gradients as naive loops in double, for the tests of the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "expect.h"
#include "pyseg/float16.h"
#include "pyseg/vlad_shape.h"

namespace {

using pyseg::Accumulate;
using pyseg::VladShape;
using Doubles = std::vector<double>;

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

// The batch normalisation of a test: values (4, G, K), and row weights (B, T) where the statistics
// are those of the assignment itself.
struct Norm {
  Doubles values, row_weights;
};

// (B, T, G, K) as (B, T, K, G).
template <typename T>
std::vector<T> by_cluster(const VladShape& s, const std::vector<T>& weights) {
  std::vector<T> result(weights.size());
  for (int64_t i = 0; i < static_cast<int64_t>(weights.size()); ++i) {
    const int64_t n = i / s.clusters, frame = n / s.groups * s.groups * s.clusters;
    result[frame + i % s.clusters * s.groups + n % s.groups] = weights[i];
  }
  return result;
}

struct Expected {
  Doubles output, features, assignment, attention, centers, norm_sums;
};

// Softmax of the normalised assignment, (B * N, K).
template <typename T>
Doubles probabilities(const VladShape& s, const std::vector<T>& z, const Norm& norm) {
  const int64_t rows = s.batch * s.rows, K = s.clusters, size = s.groups * K;
  Doubles p(rows * K);
  for (int64_t n = 0; n < rows; ++n) {
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t k = 0; k < K; ++k) {
      double& y = p[n * K + k];
      y = value_of(z[n * K + k]);
      if (!norm.values.empty()) {
        const double* value = &norm.values[n % s.groups * K + k];
        y = (y - value[0]) * value[size] * value[2 * size] + value[3 * size];
      }
      largest = std::fmax(largest, y);
    }
    for (int64_t k = 0; k < K; ++k) total += p[n * K + k] = std::exp(p[n * K + k] - largest);
    for (int64_t k = 0; k < K; ++k) p[n * K + k] /= total;
  }
  return p;
}

// From dw, the gradient of the weights a p: gradients of assignment and attention, and norm_sums.
template <typename T>
void naive_assignment(const VladShape& s, const std::vector<T>& z, const std::vector<T>& a,
                      const Norm& norm, const Doubles& p, const Doubles& dw, Expected& e) {
  const int64_t rows = s.batch * s.rows, G = s.groups, K = s.clusters, size = G * K;
  e.assignment.resize(rows * K);
  e.attention.resize(rows);
  if (!norm.values.empty()) e.norm_sums.resize(2 * size);
  for (int64_t n = 0; n < rows; ++n) {
    double mean = 0;
    for (int64_t k = 0; k < K; ++k) mean += p[n * K + k] * dw[n * K + k];
    e.attention[n] = mean;
    for (int64_t k = 0; k < K; ++k) {
      e.assignment[n * K + k] = value_of(a[n]) * p[n * K + k] * (dw[n * K + k] - mean);
    }
  }
  if (norm.values.empty()) return;
  const auto normal = [&](int64_t n, int64_t k) {
    const double* value = &norm.values[n % G * K + k];
    return (value_of(z[n * K + k]) - value[0]) * value[size];
  };
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      e.norm_sums[n % G * K + k] += e.assignment[n * K + k] * normal(n, k);
      e.norm_sums[size + n % G * K + k] += e.assignment[n * K + k];
    }
  }
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const int64_t column = n % G * K + k;
      double& d = e.assignment[n * K + k];
      if (!norm.row_weights.empty()) {
        d -= norm.row_weights[n / G] *
             (e.norm_sums[size + column] + normal(n, k) * e.norm_sums[column]);
      }
      d *= norm.values[size + column] * norm.values[2 * size + column];
    }
  }
}

// The definition, and its gradients by the chain rule, one step at a time.
template <typename T>
Expected naive(const VladShape& s, const std::vector<T>& x, const std::vector<T>& z,
               const std::vector<T>& a, const std::vector<T>& c, const Norm& norm,
               const std::vector<T>& grad, double eps) {
  const auto [B, N, G, F, K] = s;
  Expected e;
  e.output.resize(B * F * K);
  e.features.resize(B * N * F);
  e.centers.resize(F * K);
  const Doubles probability = probabilities(s, z, norm);
  Doubles dw(B * N * K);
  for (int64_t b = 0; b < B; ++b) {
    const double* const p = probability.data() + b * N * K;
    Doubles v(F * K), dv(F * K);
    for (int64_t k = 0; k < K; ++k) {
      double square_norm = 0, along = 0;
      for (int64_t f = 0; f < F; ++f) {
        for (int64_t n = 0; n < N; ++n) {
          v[f * K + k] += value_of(a[b * N + n]) * p[n * K + k] *
                          (value_of(x[(b * N + n) * F + f]) - value_of(c[f * K + k]));
        }
        square_norm += v[f * K + k] * v[f * K + k];
      }
      const double scale = 1 / std::sqrt(std::fmax(square_norm, eps));
      for (int64_t f = 0; f < F; ++f) {
        e.output[(b * F + f) * K + k] = v[f * K + k] * scale;
        along += value_of(grad[(b * F + f) * K + k]) * v[f * K + k];
      }
      for (int64_t f = 0; f < F; ++f) {
        const double direct = value_of(grad[(b * F + f) * K + k]) * scale;
        dv[f * K + k] =
            square_norm < eps ? direct : direct - along * v[f * K + k] * scale * scale * scale;
      }
    }
    for (int64_t n = 0; n < N; ++n) {
      const double attention = value_of(a[b * N + n]);
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t f = 0; f < F; ++f) {
          const double residual = value_of(x[(b * N + n) * F + f]) - value_of(c[f * K + k]);
          dw[(b * N + n) * K + k] += dv[f * K + k] * residual;
          e.features[(b * N + n) * F + f] += attention * p[n * K + k] * dv[f * K + k];
          e.centers[f * K + k] -= attention * p[n * K + k] * dv[f * K + k];
        }
      }
    }
  }
  naive_assignment(s, z, a, norm, probability, dw, e);
  return e;
}

template <typename T>
void expect_close(const std::vector<T>& actual, const Doubles& expected, double tolerance,
                  const std::string& what, double scale = 1e-2) {
  double largest = scale, error = 0;  // for F = 1 the gradients cancel to 0
  for (const double x : expected) largest = std::fmax(largest, std::fabs(x));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(value_of(actual[i]) - expected[i]);
    if (!(difference <= error) && !std::isnan(error)) error = difference;  // a NaN stays
  }
  expect(error <= tolerance * largest, what + ": error " + std::to_string(error / largest));
}

enum class Kind { kPlain, kConstants, kStatistics };  // of the normalisation

// A normalisation by the moments of `z`.
template <typename T>
Norm make_norm(const VladShape& s, const std::vector<T>& z, Kind kind, std::mt19937_64& generator) {
  const int64_t rows = s.batch * s.rows, K = s.clusters, size = s.groups * K;
  Norm norm;
  if (kind == Kind::kPlain) return norm;
  std::uniform_real_distribution<double> uniform(0.5, 1.5);
  Doubles weights(s.batch * (s.rows / s.groups));
  double total = 0;
  for (double& weight : weights) total += weight = uniform(generator);
  if (weights.size() > 1) total -= weights[1], weights[1] = 0;
  for (double& weight : weights) weight = static_cast<float>(weight / total);
  norm.values.resize(4 * size);
  double* const mean = norm.values.data();
  double* const rstd = mean + size;
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      mean[n % s.groups * K + k] += weights[n / s.groups] * value_of(z[n * K + k]);
    }
  }
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const int64_t column = n % s.groups * K + k;
      const double difference = value_of(z[n * K + k]) - mean[column];
      rstd[column] += weights[n / s.groups] * difference * difference;
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    rstd[i] = 1 / std::sqrt(rstd[i] + 1e-3);
    norm.values[2 * size + i] = uniform(generator);
    norm.values[3 * size + i] = uniform(generator);
  }
  for (double& value : norm.values) value = static_cast<float>(value);
  if (kind == Kind::kStatistics) norm.row_weights = weights;
  return norm;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace
