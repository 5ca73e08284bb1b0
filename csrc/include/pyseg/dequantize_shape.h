// What the dequantisation of frames reads; pyseg/dequantize.h computes it on the CPU and
// pyseg/cuda/dequantize.cuh on a GPU.
//
//   x[r,n] = (q[r,n] - zero_point[n]) scale[n] + offset[n], and 0 where row r is not valid
//
// It is computed in Accumulate<T>, float32 or float64, and rounded once, to the type T of x. The
// difference is exact: zero points are whole numbers.
#pragma once

#include <cstdint>

namespace pyseg {

// What the bytes of YouTube-8M stand for: values in [-2, 2], with the offset of its starter code.
constexpr double kByteScale = 4. / 255, kByteOffset = 4. / 512 - 2;

template <typename A>
struct StoredFrames {
  int64_t rows, width;
  const uint8_t* bytes;  // rows of `width`, `stride` bytes apart
  int64_t stride;
  const bool* valid;        // (rows), or null: all rows are
  const A* dequantization;  // (3, width): zero points, scales, offsets; null: 0 and those above
};

}  // namespace pyseg
