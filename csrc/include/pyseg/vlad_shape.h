// What the CPU and the CUDA kernels of the VLAD aggregation take. All arrays are contiguous.
// T is the type of the values, A the type in which sums are kept.
#pragma once

#include <cstdint>

namespace pyseg {

struct VladShape {
  int64_t batch;     // B
  int64_t rows;      // T * G rows of one video
  int64_t width;     // F
  int64_t clusters;  // K
};

template <typename T>
struct VladInput {
  const T* features;    // (B, T * G, F)
  const T* assignment;  // (B, T * G, K)
  const T* attention;   // (B, T * G)
  const T* centers;     // (F, K)
};

template <typename T, typename A>
struct VladOutput {
  T* output;       // (B, F, K)
  A* mass;         // (B, K): sum_n w[n,k]
  A* square_norm;  // (B, K): sum_f v[f,k]^2
};

// The gradient that comes in, and what the forward left.
template <typename T, typename A>
struct VladSaved {
  const T* grad;         // (B, F, K)
  const T* output;       // (B, F, K)
  const A* mass;         // (B, K)
  const A* square_norm;  // (B, K)
};

template <typename T>
struct VladGradient {
  T* features;    // (B, T * G, F), or null where it is not wanted
  T* assignment;  // (B, T * G, K)
  T* attention;   // (B, T * G)
};

}  // namespace pyseg
