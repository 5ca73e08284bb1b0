// Arguments and functions that the CPU and CUDA kernels of the rated binary cross-entropy share.
// All arrays are contiguous. T is the type of the values, A the type in which sums are kept.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PYSEG_EVERYWHERE __host__ __device__ __forceinline__
#else
#define PYSEG_EVERYWHERE __attribute__((always_inline)) inline
#endif

namespace pyseg {

// P' in CSR; without offsets there is no correlation.
template <typename A>
struct LabelCorrelation {
  int64_t size;            // nnz
  const int64_t* offsets;  // (C + 1), from 0 to nnz, not decreasing; or null
  const int64_t* columns;  // (nnz), within 0..C-1, distinct within a row and never the row itself
  const A* values;         // (nnz), within [0, 1]
};

// Row b rates classes[offsets[b]], ..., classes[offsets[b + 1] - 1]. What lies from offsets[B] on
// is padding and never read.
template <typename A>
struct Ratings {
  int64_t size;            // R
  const int64_t* offsets;  // (B + 1), from 0 to at most R, not decreasing
  const int64_t* classes;  // (R), within 0..C-1, distinct within a row
  const A* scores;         // (R), within [0, 1]
};

template <typename T, typename A>
struct RatedBceInput {
  int64_t batch, classes;  // B, C
  const T* logits;         // (B, C)
  Ratings<A> ratings;
  LabelCorrelation<A> correlation;
  A rated_weight, unrated_weight;
  A absent_evidence;  // within [0, 1], see evidence()
};

// Weight of a rated class as evidence of others: 1 if it is present, absent_evidence if absent.
template <typename A>
PYSEG_EVERYWHERE A evidence(A score, A absent_evidence) {
  return score + absent_evidence * (1 - score);
}

// x = log(1 + x) for 0 <= x <= 1, to 2 units in the last place of float: x times a polynomial in
// x - 1/2, the Chebyshev interpolation of log(1 + x) / x of degree 9. V is float or a vector of it.
template <typename V>
PYSEG_EVERYWHERE void log1p_polynomial(V& x) {
  const V u = x - 0.5f;
  V p = u * -0.00317605701f + 0.00525027048f;
  p = p * u - 0.00678801676f;
  p = p * u + 0.0115776854f;
  p = p * u - 0.0205631834f;
  p = p * u + 0.036635235f;
  p = p * u - 0.0676881894f;
  p = p * u + 0.13260901f;
  p = p * u - 0.288527101f;
  p = p * u + 0.810930192f;
  x *= p;
}

}  // namespace pyseg
