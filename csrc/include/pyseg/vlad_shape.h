// Arguments of the CPU and CUDA kernels of the VLAD aggregation and its soft assignment. All arrays
// are contiguous. T is the type of the values, A the type in which sums are kept.
#pragma once

#include <cstdint>

namespace pyseg {

struct VladShape {
  int64_t batch;     // B
  int64_t rows;      // T * G rows of one video; row n belongs to group n % G
  int64_t groups;    // G
  int64_t width;     // F; 0 for soft_assign
  int64_t clusters;  // K
};

// Batch normalisation of the assignment, applied when it is read:
//   normal[n,k] = (assignment[n,k] - mean[g,k]) rstd[g,k],  y = normal weight[g,k] + bias[g,k]
// with g = n % G. Without values there is no normalisation. With row_weights (which sum to 1 over B
// and T) mean and rstd are weighted statistics of the assignment itself, and the gradient goes
// through them; without, they are constants.
template <typename A>
struct VladNorm {
  const A* values;       // (4, G, K): mean, rstd, weight, bias; or null
  const A* row_weights;  // (B, T), or null
};

template <typename T, typename A>
struct VladInput {
  const T* features;    // (B, T * G, F)
  const T* assignment;  // (B, T * G, K)
  const T* attention;   // (B, T * G)
  const T* centers;     // (F, K)
  VladNorm<A> norm;
};

template <typename T, typename A>
struct VladOutput {
  T* output;       // (B, F, K)
  A* mass;         // (B, K): sum_n w[n,k]
  A* square_norm;  // (B, K): sum_f v[f,k]^2
};

// The incoming gradient, and the outputs of the forward.
template <typename T, typename A>
struct VladSaved {
  const T* grad;         // (B, F, K)
  const T* output;       // (B, F, K)
  const A* mass;         // (B, K)
  const A* square_norm;  // (B, K)
};

// With e the gradient of y: norm_sums[0] = sum_n e normal, the gradient of weight, and
// norm_sums[1] = sum_n e, that of bias (sums over the rows of a group, in all videos). The gradient
// of the assignment is weight rstd (e - row_weight (norm_sums[1] + normal norm_sums[0])).
template <typename T, typename A>
struct VladGradient {
  T* features;    // (B, T * G, F), or null where it is not needed
  T* assignment;  // (B, T * G, K)
  T* attention;   // (B, T * G)
  T* centers;     // (F, K)
  A* norm_sums;   // (2, G, K); null without norm.values
};

}  // namespace pyseg
