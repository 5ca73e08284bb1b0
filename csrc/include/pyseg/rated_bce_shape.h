// What the CPU and the CUDA kernels of the rated binary cross-entropy take. All arrays are
// contiguous. T is the type of the values, A the type in which sums are kept.
#pragma once

#include <cstdint>

namespace pyseg {

// P' as sparse rows; without offsets there is no correlation.
template <typename A>
struct LabelCorrelation {
  const int64_t* offsets;  // (C + 1), or null
  const int64_t* columns;  // (nnz), within 0..C-1 and never the row itself
  const A* values;         // (nnz)
};

// Row b rates classes[offsets[b]], ..., classes[offsets[b + 1] - 1].
template <typename A>
struct Ratings {
  const int64_t* offsets;  // (B + 1), from 0, not decreasing
  const int64_t* classes;  // (R), within 0..C-1, different within a row
  const A* scores;         // (R), within [0, 1]
};

template <typename T, typename A>
struct RatedBceInput {
  int64_t batch, classes;  // B, C
  const T* logits;         // (B, C)
  Ratings<A> ratings;
  LabelCorrelation<A> correlation;
  A rated_weight, unrated_weight;
};

}  // namespace pyseg
