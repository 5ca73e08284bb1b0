// The two 16-bit floating types, for storage only: kernels widen to float, compute and round back.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define PYSEG_INLINE __attribute__((always_inline)) inline

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

namespace float16_detail {

// Conversions of one value or of every lane of a vector: Bits is uint32_t or a vector of it, Float
// is float or a vector of it. Arguments are references: vectors must not be passed by value, see
// simd.h.

template <typename To, typename From>
PYSEG_INLINE void reinterpret(const From& from, To& to) {
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&to, &from, sizeof(To));
}

template <typename Bits, typename Float>
PYSEG_INLINE void widen(const Bits& half, Float& result, BFloat16) {
  const Bits bits = half << 16;
  reinterpret(bits, result);
}

template <typename Bits, typename Float>
PYSEG_INLINE void widen(const Bits& half, Float& result, Float16) {
  const Bits rest = half & 0x7fffu;
  const Bits special = Bits{} + 0x70000000u, finite = Bits{} + 0x38000000u;
  const Bits normal = (rest << 13) + (rest >= 0x7c00u ? special : finite);
  Float small;
  if constexpr (std::is_same_v<Bits, uint32_t>) {
    small = static_cast<float>(rest);
  } else {
    small = __builtin_convertvector(rest, Float);
  }
  small = small * 0x1p-24f;
  Bits subnormal;
  reinterpret(small, subnormal);
  const Bits bits = (rest < 0x0400u ? subnormal : normal) | (half & 0x8000u) << 16;
  reinterpret(bits, result);
}

// Rounding is to nearest, ties to even; a NaN stays a NaN.
template <typename Float, typename Bits>
PYSEG_INLINE void narrow(const Float& value, Bits& half, BFloat16) {
  Bits bits;
  reinterpret(value, bits);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, nan = (bits >> 16) | 0x40u;
  half = (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
}

template <typename Float, typename Bits>
PYSEG_INLINE void narrow(const Float& value, Bits& half, Float16) {
  Bits bits;
  reinterpret(value, bits);
  const Bits rest = bits & 0x7fffffffu, smallest = Bits{} + 0x38800000u;  // smallest normal
  // Adding 0.5 rounds to multiples of 2^-24, the spacing of subnormals.
  const Bits bounded = rest < smallest ? rest : smallest;
  Float shifted;
  reinterpret(bounded, shifted);
  shifted = shifted + 0.5f;
  Bits subnormal;
  reinterpret(shifted, subnormal);
  subnormal = subnormal - 0x3f000000u;
  const Bits normal = (rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13;
  const Bits nan = Bits{} + 0x7e00u, infinity = Bits{} + 0x7c00u;
  const Bits special = rest > 0x7f800000u ? nan : infinity;
  const Bits finite = rest < smallest ? subnormal : normal;
  half = (rest >= 0x47800000u ? special : finite) | ((bits >> 16) & 0x8000u);
}

}  // namespace float16_detail

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline void narrow(float value, float& result) { result = value; }
inline void narrow(double value, double& result) { result = value; }

template <typename T>
  requires std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>
float widen(T value) {
  float result;
  float16_detail::widen(uint32_t{value.bits}, result, T{});
  return result;
}

template <typename T>
  requires std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>
void narrow(float value, T& result) {
  uint32_t half;
  float16_detail::narrow(value, half, T{});
  result.bits = static_cast<uint16_t>(half);
}

// narrow(), but a finite value beyond the range of T becomes T's largest, not infinity.
template <typename T, typename A>
void narrow_saturated(A value, T& result) {
  narrow(value, result);
}
inline void narrow_saturated(float value, Float16& result) {
  narrow(std::isfinite(value) ? std::clamp(value, -65504.f, 65504.f) : value, result);
}

}  // namespace pyseg
