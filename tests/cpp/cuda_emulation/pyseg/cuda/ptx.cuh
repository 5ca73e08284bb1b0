// The instructions of csrc/include/pyseg/cuda/ptx.cuh for the emulation, by the PTX ISA's tables of
// the lanes' operands. A copy to shared memory completes as late as allowed.
#pragma once

#include "pyseg/cuda/common.cuh"

namespace emulation {

struct Copy {
  void* target;
  const void* source;  // null: zeros
};
// One thread's groups of copies, the last of which is open.
using CopyGroups = std::vector<std::vector<Copy>>;

inline CopyGroups& copies() {
  static std::vector<std::pair<int64_t, CopyGroups>> of_threads(kMostThreads);
  const Block& block = *Block::current();
  auto& [owner, groups] = of_threads[block.thread()];
  if (owner != block.number()) owner = block.number(), groups.assign(1, {});
  return groups;
}

inline void check_16_bytes(const void* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
    fail("an address that is not aligned to 16 bytes");
}

// The 16-bit element `half`, 0 or 1, of a register.
template <typename T>
float half_of(uint32_t bits, int half) {
  T value;
  const auto part = static_cast<uint16_t>(bits >> (16 * half));
  std::memcpy(&value, &part, sizeof(part));
  return pyseg::gpu::widen(value);
}

// c(i, j) += sum_d left(i, d) right(d, j) for the lane's four elements.
template <int kDepth, typename Left, typename Right>
void multiply_add(const Left& left, const Right& right, float (&c)[4]) {
  const int lane = Block::current()->lane(), i = lane / 4, j = lane % 4 * 2;
  for (int d = 0; d < kDepth; ++d) {
    const float rows[2]{left(i, d), left(i + 8, d)}, columns[2]{right(d, j), right(d, j + 1)};
    for (int e = 0; e < 4; ++e) c[e] += rows[e / 2] * columns[e % 2];
  }
}

using Operands = std::array<uint32_t, 6>;  // a, then b

template <typename T>
void multiply_add_halves(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
  const auto of = Block::current()->exchange(Operands{a[0], a[1], a[2], a[3], b[0], b[1]});
  multiply_add<16>(
      [&](int i, int d) { return half_of<T>(of(i % 8 * 4 + d % 8 / 2)[i / 8 + d / 8 * 2], d % 2); },
      [&](int d, int j) { return half_of<T>(of(j * 4 + d % 8 / 2)[4 + d / 8], d % 2); }, c);
}

}  // namespace emulation

namespace pyseg {
namespace gpu {

inline unsigned char* dynamic_shared_memory() {
  return reinterpret_cast<unsigned char*>(emulation::dynamic_shared);
}

template <int kOffset>
void copy_16_bytes(bool wanted, void* target, const void* source, bool inside) {
  if (!wanted) return;
  target = static_cast<char*>(target) + kOffset;
  source = static_cast<const char*>(source) + kOffset;
  emulation::check_16_bytes(target);
  emulation::check_16_bytes(source);
  emulation::copies().back().push_back({target, inside ? source : nullptr});
}

inline void commit_copies() { emulation::copies().emplace_back(); }

template <int kPending>
void wait_for_copies() {
  auto& groups = emulation::copies();
  while (groups.size() > kPending + 1) {
    for (const emulation::Copy& copy : groups.front()) {
      if (copy.source == nullptr) {
        std::memset(copy.target, 0, 16);
      } else {
        std::memcpy(copy.target, copy.source, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

template <bool kTransposed>
void load_matrices(const void* row, uint32_t (&result)[4]) {
  emulation::check_16_bytes(row);
  emulation::Block& block = *emulation::Block::current();
  const auto row_of = block.exchange(row);
  const int lane = block.lane();
  for (int j = 0; j < 4; ++j) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int line = kTransposed ? lane % 4 * 2 + i : lane / 4;
      const int place = kTransposed ? lane / 4 : lane % 4 * 2 + i;
      std::memcpy(&pair[i], static_cast<const uint16_t*>(row_of(8 * j + line)) + place, 2);
    }
    std::memcpy(&result[j], pair, sizeof(pair));
  }
  block.sync_warp();  // the instruction ends for all lanes at once
}

inline void multiply_add(__half, const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
  emulation::multiply_add_halves<__half>(a, b, c);
}
inline void multiply_add(__nv_bfloat16, const uint32_t (&a)[4], const uint32_t (&b)[2],
                         float (&c)[4]) {
  emulation::multiply_add_halves<__nv_bfloat16>(a, b, c);
}
// TF32 leaves the last 13 bits of a float unread.
inline void multiply_add(float, const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
  const auto of = emulation::Block::current()->exchange(
      emulation::Operands{a[0], a[1], a[2], a[3], b[0], b[1]});
  const auto value = [](uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); };
  emulation::multiply_add<8>(
      [&](int i, int d) { return value(of(i % 8 * 4 + d % 4)[i / 8 + d / 4 * 2]); },
      [&](int d, int j) { return value(of(j * 4 + d % 4)[4 + d / 4]); }, c);
}

// To the nearest value of TF32, ties away from zero.
inline float round_tf32(float value) {
  if (!std::isfinite(value)) return value;
  return __uint_as_float((__float_as_uint(value) + 0x1000u) & 0xffffe000u);
}

inline int opaque(int value) { return value; }

inline float approximate_exp2(float value) {
  const float result = exp2f(value);
  return result < std::numeric_limits<float>::min() ? 0.f : result;  // NaN stays
}

}  // namespace gpu
}  // namespace pyseg
