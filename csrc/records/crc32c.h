// CRC32C (Castagnoli, polynomial 0x1EDC6F41, reflected; RFC 3720 appendix B.4), the checksum of
// TFRecord files.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace pyseg::records {

static_assert(std::endian::native == std::endian::little, "records are little-endian");

namespace crc {

inline constexpr uint32_t kPolynomial = 0x82F63B78;  // bit-reversed

// Row 0 advances the state by one byte; row k by the same byte followed by k zero bytes.
inline constexpr auto kBytes = [] {
  std::array<std::array<uint32_t, 256>, 8> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? kPolynomial : 0);
    table[0][byte] = value;
  }
  for (int row = 1; row < 8; ++row) {
    for (int byte = 0; byte < 256; ++byte) {
      const uint32_t value = table[row - 1][byte];
      table[row][byte] = (value >> 8) ^ table[0][value & 0xFF];
    }
  }
  return table;
}();

// A linear map of the state, by columns: what each single bit becomes.
using Map = std::array<uint32_t, 32>;

constexpr uint32_t mapped(const Map& map, uint32_t state) {
  uint32_t result = 0;
  for (int bit = 0; bit < 32; ++bit) {
    if (state >> bit & 1) result ^= map[bit];
  }
  return result;
}

// The map that advances the state by `count` zero bytes, a power of two, as a table for each byte
// of the state.
template <size_t count>
inline constexpr auto kZeros = [] {
  static_assert(std::has_single_bit(count));
  Map map{};
  for (int bit = 0; bit < 32; ++bit) {
    const uint32_t value = uint32_t{1} << bit;
    map[bit] = (value >> 8) ^ kBytes[0][value & 0xFF];
  }
  for (size_t done = 1; done < count; done *= 2) {
    Map twice{};
    for (int bit = 0; bit < 32; ++bit) twice[bit] = mapped(map, map[bit]);
    map = twice;
  }
  std::array<std::array<uint32_t, 256>, 4> table{};
  for (int part = 0; part < 4; ++part) {
    for (uint32_t byte = 0; byte < 256; ++byte) table[part][byte] = mapped(map, byte << (8 * part));
  }
  return table;
}();

template <size_t count>
inline uint32_t advance(uint32_t state) {
  const auto& table = kZeros<count>;
  return table[0][state & 0xFF] ^ table[1][state >> 8 & 0xFF] ^ table[2][state >> 16 & 0xFF] ^
         table[3][state >> 24];
}

inline uint64_t load64(const uint8_t* data) {
  uint64_t value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

// For any processor: eight independent table look-ups for eight bytes.
inline uint32_t extend_portable(uint32_t checksum, const uint8_t* data, size_t size) {
  uint32_t state = ~checksum;
  for (; size >= 8; data += 8, size -= 8) {
    const uint64_t word = load64(data) ^ state;
    state = 0;
    for (int i = 0; i < 8; ++i) state ^= kBytes[7 - i][word >> (8 * i) & 0xFF];
  }
  for (; size; ++data, --size) state = kBytes[0][(state ^ *data) & 0xFF] ^ (state >> 8);
  return ~state;
}

#if defined(__x86_64__)

// The crc32 instruction takes 8 bytes with a throughput of one per cycle and a latency of three
// cycles: three streams of `lane` bytes side by side keep it busy. The states of the first two are
// then advanced past the bytes that follow them.
template <size_t lane>
__attribute__((target("sse4.2"))) inline uint32_t extend_lanes(uint32_t state, const uint8_t*& data,
                                                               size_t& size) {
  for (; size >= 3 * lane; data += 3 * lane, size -= 3 * lane) {
    uint64_t first = state, second = 0, third = 0;
    for (size_t i = 0; i < lane; i += 8) {
      first = _mm_crc32_u64(first, load64(data + i));
      second = _mm_crc32_u64(second, load64(data + lane + i));
      third = _mm_crc32_u64(third, load64(data + 2 * lane + i));
    }
    const uint32_t both =
        advance<lane>(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
    state = advance<lane>(both) ^ static_cast<uint32_t>(third);
  }
  return state;
}

__attribute__((target("sse4.2"))) inline uint32_t extend_sse42(uint32_t checksum,
                                                               const uint8_t* data, size_t size) {
  uint32_t state = ~checksum;
  state = extend_lanes<4096>(state, data, size);
  state = extend_lanes<256>(state, data, size);
  for (; size >= 8; data += 8, size -= 8)
    state = static_cast<uint32_t>(_mm_crc32_u64(state, load64(data)));
  for (; size; ++data, --size) state = _mm_crc32_u8(state, *data);
  return ~state;
}

inline bool has_sse42() { return __builtin_cpu_supports("sse4.2"); }

#else

inline bool has_sse42() { return false; }

#endif

}  // namespace crc

// The checksum of the bytes that gave `checksum` followed by `data`.
inline uint32_t crc32c(const uint8_t* data, size_t size, uint32_t checksum = 0) {
#if defined(__x86_64__)
  static const bool hardware = crc::has_sse42();
  if (hardware) return crc::extend_sse42(checksum, data, size);
#endif
  return crc::extend_portable(checksum, data, size);
}

// TensorFlow's mask, for data that contains checksums itself.
inline uint32_t mask(uint32_t checksum) { return std::rotr(checksum, 15) + 0xA282EAD8; }

}  // namespace pyseg::records
