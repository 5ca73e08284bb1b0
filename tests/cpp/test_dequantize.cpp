// The CPU kernel of pyseg/dequantize.h against its equation in double, at every vector level that
// this processor has.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "naive_vlad.h"
#include "pyseg/dequantize.h"

namespace {

using pyseg::Accumulate;
using pyseg::Simd;

template <typename T>
void test(Simd level, int64_t rows, int64_t width, int64_t stride, bool masked, bool given,
          double unit) {
  using A = Accumulate<T>;
  std::mt19937_64 generator(4);
  std::vector<uint8_t> bytes(rows * stride);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  const std::array<bool, 3> valid = {true, false, true};
  std::vector<A> parameters(3 * width);
  for (int64_t i = 0; i < 3 * width; ++i) {
    const int64_t whole = static_cast<int64_t>(generator() % 256);
    parameters[i] = i < width ? A(whole) : (A(whole) - 100) / 64;
  }
  std::vector<T> values(rows * width + 1);
  values.back() = T{};
  const pyseg::StoredFrames<A> in{rows,
                                  width,
                                  bytes.data(),
                                  stride,
                                  masked ? valid.data() : nullptr,
                                  given ? parameters.data() : nullptr};
  pyseg::dequantize(in, 0, rows / 2, values.data(), level);
  pyseg::dequantize(in, rows / 2, rows, values.data(), level);
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t r = i / width, n = i % width;
    const double q = bytes[r * stride + n], found = value_of(values[i]);
    const double product = given ? (q - parameters[n]) * parameters[width + n] : q * (4. / 255);
    const double added = given ? parameters[2 * width + n] : 4. / 512 - 2, x = product + added;
    // One rounding of the result, and those of the sum.
    const double allowed = unit * std::abs(x) + std::numeric_limits<A>::epsilon() *
                                                    (std::abs(product) + std::abs(added));
    const bool right = masked && !valid[r] ? found == 0 : std::abs(found - x) <= allowed;
    expect(right, "dequantize width " + std::to_string(width) + " level " +
                      std::to_string(static_cast<int>(level)));
  }
  expect(value_of(values.back()) == 0, "dequantize writes beyond its rows");
}

}  // namespace

int main() {
  for (const Simd level : {Simd::kPortable, Simd::kAvx2, Simd::kAvx512}) {
    if (level > pyseg::best_simd()) break;
    for (const int64_t width : {0, 1, 7, 16, 45}) {
      for (const bool masked : {false, true}) {
        for (const bool given : {false, true}) {
          test<float>(level, 3, width, width + 2, masked, given, 0);
          test<double>(level, 3, width, width + 2, masked, given, 0);
          test<pyseg::Float16>(level, 3, width, width + 2, masked, given, 0x1.01p-11);
          test<pyseg::BFloat16>(level, 3, width, width + 2, masked, given, 0x1.01p-8);
        }
      }
    }
  }
  if (failures == 0) std::printf("passed\n");
  return failures == 0 ? 0 : 1;
}
