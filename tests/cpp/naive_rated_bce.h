// Inputs of the rated loss, and its definition as naive loops in double, for the tests of the
// kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "pyseg/float16.h"
#include "pyseg/rated_bce_shape.h"

namespace {

using pyseg::Accumulate;

// Rows with 0 to `most` ratings and, in the correlation, 0 to 4 relations. After the ratings there
// is padding that no kernel may read.
template <typename T>
struct RatedBceCase {
  using A = Accumulate<T>;
  int64_t batch, classes;
  std::vector<T> logits;
  std::vector<int64_t> offsets{0}, rated, relations{0}, columns;
  std::vector<A> scores, values;

  RatedBceCase(int64_t batch, int64_t classes, int64_t most, double scale)
      : batch(batch), classes(classes), logits(batch * classes) {
    std::mt19937_64 generator(1);
    std::normal_distribution<double> normal(0, scale);
    for (T& z : logits) pyseg::narrow(static_cast<A>(normal(generator)), z);
    const auto draw = [&](int64_t size) {
      std::set<int64_t> found;
      for (int64_t i = 0; i < size; ++i) found.insert(static_cast<int64_t>(generator() % classes));
      return found;
    };
    for (int64_t b = 0; b < batch; ++b) {
      for (const int64_t j : draw(classes == 0 ? 0 : generator() % (most + 1))) {
        rated.push_back(j);
        scores.push_back(static_cast<A>(generator() % 5) / 4);
      }
      offsets.push_back(static_cast<int64_t>(rated.size()));
    }
    for (const int64_t j : {int64_t{0}, int64_t{-1}, classes}) {
      rated.push_back(j);
      scores.push_back(std::numeric_limits<A>::quiet_NaN());
    }
    for (int64_t i = 0; i < classes; ++i) {
      for (const int64_t j : draw(generator() % 5)) {
        if (j == i) continue;
        columns.push_back(j);
        values.push_back(static_cast<A>(generator() % 1000) / 999);
      }
      relations.push_back(static_cast<int64_t>(columns.size()));
    }
  }

  pyseg::RatedBceInput<T, A> input(bool correlated, A absent_evidence) const {
    pyseg::RatedBceInput<T, A> in{
        batch,
        classes,
        logits.data(),
        {static_cast<int64_t>(rated.size()), offsets.data(), rated.data(), scores.data()},
        {},
        A(2.5),
        A(0.1),
        absent_evidence};
    if (correlated) {
      in.correlation = {static_cast<int64_t>(columns.size()), relations.data(), columns.data(),
                        values.data()};
    }
    return in;
  }
};

// Loss and gradient of every row by the definition.
template <typename T>
void naive_rated_bce(const pyseg::RatedBceInput<T, Accumulate<T>>& in, std::vector<double>& loss,
                     std::vector<double>& gradient) {
  for (int64_t b = 0; b < in.batch; ++b) {
    std::vector<double> y(in.classes), w(in.classes, in.unrated_weight);
    const int64_t begin = in.ratings.offsets[b], end = in.ratings.offsets[b + 1];
    for (int64_t r = begin; r < end && in.correlation.offsets != nullptr; ++r) {
      const int64_t i = in.ratings.classes[r];
      const double score = in.ratings.scores[r];
      const double evidence = score + in.absent_evidence * (1 - score);
      for (int64_t p = in.correlation.offsets[i]; p < in.correlation.offsets[i + 1]; ++p) {
        y[in.correlation.columns[p]] += evidence * in.correlation.values[p];
      }
    }
    for (double& target : y) target = std::min(target, 1.0);
    for (int64_t r = begin; r < end; ++r) {
      y[in.ratings.classes[r]] = in.ratings.scores[r];
      w[in.ratings.classes[r]] = in.rated_weight;
    }
    for (int64_t j = 0; j < in.classes; ++j) {
      const double z = pyseg::widen(in.logits[b * in.classes + j]);
      loss[b] +=
          w[j] * (std::log1p(std::exp(-std::fabs(z))) + (z > 0 ? z * (1 - y[j]) : -y[j] * z));
      gradient[b * in.classes + j] = w[j] * (1 / (1 + std::exp(-z)) - y[j]);
    }
  }
}

}  // namespace
