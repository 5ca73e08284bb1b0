// The two 16-bit floating types, as storage only: kernels widen to float, compute and round back.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace pyseg {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// The type in which sums over values of type T are kept.
template <typename T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateOf<T>::type;

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

inline float widen(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t rest = value.bits & 0x7fffu;
  const uint32_t normal = (rest << 13) + (rest >= 0x7c00u ? 0x70000000u : 0x38000000u);
  const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(rest) * 0x1p-24f);
  return std::bit_cast<float>((rest < 0x0400u ? subnormal : normal) | sign);
}

// Rounding is to nearest, ties to even; a NaN stays a NaN.
inline void narrow(float value, float& result) { result = value; }
inline void narrow(double value, double& result) { result = value; }

inline void narrow(float value, BFloat16& result) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  result.bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

inline void narrow(float value, Float16& result) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  // Adding 0.5 lets the addition itself round to multiples of 2^-24, the subnormals' spacing.
  const float shifted = std::bit_cast<float>(std::min(rest, 0x38800000u)) + 0.5f;
  const uint32_t subnormal = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
  const uint32_t normal = (rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13;
  const uint32_t special = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = rest < 0x38800000u ? subnormal : normal;
  result.bits = static_cast<uint16_t>((rest >= 0x47800000u ? special : finite) | sign);
}

// The same, but a finite value beyond the range of T becomes T's largest, not infinity.
template <typename T, typename A>
void narrow_saturated(A value, T& result) {
  narrow(value, result);
}
inline void narrow_saturated(float value, Float16& result) {
  narrow(std::isfinite(value) ? std::clamp(value, -65504.f, 65504.f) : value, result);
}

}  // namespace pyseg
