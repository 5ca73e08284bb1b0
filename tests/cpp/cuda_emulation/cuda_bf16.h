// __nv_bfloat16 for the emulation, with the conversions of pyseg/float16.h.
#pragma once

#include "pyseg/float16.h"

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    pyseg::BFloat16 half;
    pyseg::narrow(value, half);
    bits = half.bits;
  }
};
inline float __bfloat162float(__nv_bfloat16 value) {
  return pyseg::widen(pyseg::BFloat16{value.bits});
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }

struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
