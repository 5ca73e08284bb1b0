// __half for the emulation, with the conversions of pyseg/float16.h.
#pragma once

#include "pyseg/float16.h"

struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) {
    pyseg::Float16 half;
    pyseg::narrow(value, half);
    bits = half.bits;
  }
};
inline float __half2float(__half value) { return pyseg::widen(pyseg::Float16{value.bits}); }
inline __half __float2half_rn(float value) { return __half(value); }

struct __half2 {
  __half x, y;
};
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
