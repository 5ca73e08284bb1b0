// What a batch normalisation takes from the moments of a batch, on the CPU and on a GPU. With mean
// m and biased variance v of column c:
//
//   norm[:,c] = (m, 1 / sqrt(v + eps), weight[c], bias[c])
//   running_mean[c] moves towards m + deferred_bias[c], running_var[c] towards v correction, both
//   by the part `momentum` of the way
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define PYSEG_BOTH __host__ __device__
#else
#define PYSEG_BOTH
#endif

namespace pyseg {

template <typename A>
struct BatchStatistics {
  int64_t columns;         // C
  const A* moments;        // (2, C): mean and biased variance
  const A* weight;         // (C)
  const A* bias;           // (C)
  const A* deferred_bias;  // (C), or null for zeros
  A momentum, eps, correction;
  A* running_mean;  // (C)
  A* running_var;   // (C)
  A* norm;          // (4, C)
};

// Computed from the nearer end, with one rounding, as torch.lerp does: exact for a part of 0 and of
// 1, and the same to the bit as that operator, which compiled graphs take.
template <typename A>
PYSEG_BOTH inline A moved(A from, A to, A part) {
  return part < A(0.5) ? std::fma(part, to - from, from) : std::fma(part - 1, to - from, to);
}

template <typename A>
PYSEG_BOTH inline void batch_statistics(const BatchStatistics<A>& in, int64_t c) {
  const int64_t columns = in.columns;
  const A mean = in.moments[c], variance = in.moments[columns + c];
  in.norm[c] = mean;
  in.norm[columns + c] = 1 / std::sqrt(variance + in.eps);
  in.norm[2 * columns + c] = in.weight[c];
  in.norm[3 * columns + c] = in.bias[c];
  const A center = in.deferred_bias == nullptr ? mean : mean + in.deferred_bias[c];
  in.running_mean[c] = moved(in.running_mean[c], center, in.momentum);
  in.running_var[c] = moved(in.running_var[c], variance * in.correction, in.momentum);
}

}  // namespace pyseg

#undef PYSEG_BOTH
