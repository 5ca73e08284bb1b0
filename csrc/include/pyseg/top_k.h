// The k best scores of every class of a stream, on the CPU. top_k_append appends the scores of a
// block that may be among the best to a list per class, until one is full; top_k_cut shortens
// lists. No framework: raw pointers and sizes; the caller divides the classes among its threads.
//
// A key is a score and an id in 64 bits, the smaller the better: above the id are the bits of the
// float32, mapped to an unsigned integer that falls as the score grows, with -0 as 0.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

#include "pyseg/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pyseg {

// A class must have room for at least this many more than k keys.
constexpr int64_t kTopKLeastRoom = 64;

// The lists of keys, unsorted.
struct TopKLists {
  int64_t room;          // of each class
  uint64_t* thresholds;  // (classes): new keys must be below
  uint64_t* keys;        // (classes, room)
  int64_t* counts;       // (classes): number of keys
};

struct TopKBlock {
  int64_t rows, classes;
  const float* scores;        // (rows, classes)
  const uint32_t* ids;        // (rows)
  const uint8_t* candidates;  // (rows, classes), 0 or 1: whether a score counts; null: all do
  TopKLists lists;
};

namespace top_k_detail {

// Above the keys of all scores, and below those of scores that are masked by `candidates`.
constexpr uint64_t kWorst = 0xff80000100000000;

constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;

// Scores are transposed in tiles of this many rows and columns, which fit the L1 cache.
constexpr int64_t kRows = kTopKLeastRoom, kColumns = 16;

// A transposed tile: `rows` rows from `row` on and `columns` columns from `column` on.
struct Tile {
  int64_t row, rows, column, columns;
  const int32_t* scores;  // (columns, kRows), aligned: the upper halves of the keys
};

// Appends the keys of `rows` scores that are below a threshold; returns the new number of keys.
inline int64_t append_rows(const int32_t* scores, const uint32_t* ids, int64_t rows,
                           uint64_t threshold, uint64_t* keys, int64_t count) {
  for (int64_t i = 0; i < rows; ++i) {  // without a branch: the next key overwrites a rejected one
    const uint64_t key = uint64_t{static_cast<uint32_t>(scores[i])} << 32 | ids[i];
    keys[count] = key;
    count += key < threshold;
  }
  return count;
}

// Prefetches the place of the next keys of a class, about as many as this tile had. The hardware
// prefetcher does not follow that many classes in turn.
inline void prefetch_keys(const uint64_t* keys, int64_t before, int64_t count, int64_t room) {
  const int64_t next = std::min(2 * count - before + 16, room);
  for (int64_t at = count + 8; at < next; at += 8) __builtin_prefetch(keys + at, 1, 2);
}

#if defined(__x86_64__)
// For each mask over 4 keys, the 32-bit lanes that move the masked keys to the front.
inline constexpr auto kCompress4 = [] {
  std::array<std::array<int32_t, 8>, 16> halves = {};
  for (int mask = 0; mask < 16; ++mask) {
    int count = 0;
    for (int i = 0; i < 4; ++i) {
      if ((mask >> i & 1) == 0) continue;
      halves[mask][count++] = 2 * i;
      halves[mask][count++] = 2 * i + 1;
    }
  }
  return halves;
}();

// Flips the highest bit of keys: AVX2 compares signed numbers only.
PYSEG_TARGET_AVX2 PYSEG_INLINE __m256i with_sign(__m256i keys) {
  return _mm256_xor_si256(keys, _mm256_set1_epi64x(INT64_MIN));
}

// A bit for each of 4 keys: whether it is above the other one; both are with_sign.
PYSEG_TARGET_AVX2 PYSEG_INLINE int above(__m256i keys, __m256i others) {
  return _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(keys, others)));
}

// Writes those of 4 keys that a mask selects to `result`, followed by anything up to 4 values;
// returns their number.
PYSEG_TARGET_AVX2 PYSEG_INLINE int64_t compress_4(__m256i keys, int mask, uint64_t* result) {
  const auto* const lanes = reinterpret_cast<const __m256i*>(kCompress4[mask].data());
  const __m256i compressed = _mm256_permutevar8x32_epi32(keys, _mm256_loadu_si256(lanes));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(result), compressed);
  return __builtin_popcount(mask);
}

// append_rows; `scores` is aligned.
PYSEG_TARGET_AVX2 inline int64_t append_rows_avx2(const int32_t* scores, const uint32_t* ids,
                                                  int64_t rows, uint64_t threshold, uint64_t* keys,
                                                  int64_t count) {
  const __m256i limit = with_sign(_mm256_set1_epi64x(static_cast<int64_t>(threshold)));
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) {
    __m256i score = _mm256_load_si256(reinterpret_cast<const __m256i*>(scores + i));
    __m256i id = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ids + i));
    // In the order of pairs 0, 2, 1, 3, unpacking gives keys 0 to 3 and 4 to 7.
    score = _mm256_permute4x64_epi64(score, 0b11'01'10'00);
    id = _mm256_permute4x64_epi64(id, 0b11'01'10'00);
    const __m256i low = _mm256_unpacklo_epi32(id, score);
    const __m256i high = _mm256_unpackhi_epi32(id, score);
    count += compress_4(low, above(limit, with_sign(low)), keys + count);
    count += compress_4(high, above(limit, with_sign(high)), keys + count);
  }
  return append_rows(scores + i, ids + i, rows - i, threshold, keys, count);
}

// Appends 16 scores to `count` keys and returns the new number of keys. It stores whole vectors,
// which is fast on every processor, unless kPartial: then it reads only `valid` lanes and writes
// only selected keys.
template <bool kPartial>
PYSEG_TARGET_AVX512 PYSEG_INLINE int64_t append_16(const int32_t* scores, const uint32_t* ids,
                                                   __m512i threshold, uint64_t* keys, int64_t count,
                                                   __mmask16 valid) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const __m512i score = _mm512_load_si512(scores);
  const __m512i id = kPartial ? _mm512_maskz_loadu_epi32(valid, ids) : _mm512_loadu_si512(ids);
  const __m512i low = _mm512_permutex2var_epi32(id, first, score);
  const __m512i high = _mm512_permutex2var_epi32(id, second, score);
  __mmask8 low_mask = _mm512_cmplt_epu64_mask(low, threshold);
  __mmask8 high_mask = _mm512_cmplt_epu64_mask(high, threshold);
  if constexpr (kPartial) low_mask &= valid, high_mask &= valid >> 8;
  const int64_t between = count + __builtin_popcount(low_mask);
  if constexpr (kPartial) {
    _mm512_mask_compressstoreu_epi64(keys + count, low_mask, low);
    _mm512_mask_compressstoreu_epi64(keys + between, high_mask, high);
  } else {
    _mm512_storeu_si512(keys + count, _mm512_maskz_compress_epi64(low_mask, low));
    _mm512_storeu_si512(keys + between, _mm512_maskz_compress_epi64(high_mask, high));
  }
  return between + __builtin_popcount(high_mask);
}

PYSEG_TARGET_AVX512 inline void append_avx512(const TopKBlock& block, const Tile& tile) {
  const uint32_t* const ids = block.ids + tile.row;
  const int64_t room = block.lists.room, rows = tile.rows, columns = tile.columns;
  const int32_t* scores = tile.scores;
  const uint64_t* const thresholds = block.lists.thresholds + tile.column;
  int64_t* const counts = block.lists.counts + tile.column;
  uint64_t* keys = block.lists.keys + tile.column * room;
  for (int64_t c = 0; c < columns; ++c, scores += kRows, keys += room) {
    const __m512i threshold =
        _mm512_set1_epi64(static_cast<int64_t>(std::min(thresholds[c], kWorst)));
    int64_t count = counts[c], i = 0;
    for (; i + 16 <= rows; i += 16) {
      count = append_16<false>(scores + i, ids + i, threshold, keys, count, 0);
    }
    if (i < rows) {
      const __mmask16 valid = (1u << (rows - i)) - 1;
      count = append_16<true>(scores + i, ids + i, threshold, keys, count, valid);
    }
    prefetch_keys(keys, counts[c], count, room);
    counts[c] = count;
  }
}
#endif

// Appends the keys of a tile that are below the thresholds.
template <int kBytes>
PYSEG_INLINE void append(const TopKBlock& block, const Tile& tile) {
  auto* rows_of = append_rows;
#if defined(__x86_64__)
  if constexpr (kBytes == 64) return append_avx512(block, tile);
  if constexpr (kBytes == 32) rows_of = append_rows_avx2;
#endif
  for (int64_t c = 0; c < tile.columns; ++c) {
    const int64_t column = tile.column + c, room = block.lists.room;
    const uint64_t threshold = std::min(block.lists.thresholds[column], kWorst);
    uint64_t* const keys = block.lists.keys + column * room;
    const int64_t before = block.lists.counts[column];
    const int64_t count =
        rows_of(tile.scores + c * kRows, block.ids + tile.row, tile.rows, threshold, keys, before);
    prefetch_keys(keys, before, count, room);
    block.lists.counts[column] = count;
  }
}

// Writes the upper halves of the keys of the square at (row, column), transposed. Rows beyond the
// last one repeat it; kPartial: columns may be beyond the last one. `largest` is the maximum of all
// magnitudes seen.
template <int kBytes, bool kPartial>
PYSEG_INLINE void transpose(const TopKBlock& block, int64_t row, int64_t column,
                            int32_t* transposed, simd::Vector<int32_t, kBytes>& largest) {
  constexpr int64_t kSize = simd::kLanes<float, kBytes>;
  using Float = simd::Vector<float, kBytes>;
  using Int = simd::Vector<int32_t, kBytes>;
  // The hardware prefetcher does not follow rows that are read in parts.
  const int64_t ahead = row + kRows + kSize <= block.rows ? kRows * block.classes : 0;
  const float* source = block.scores + row * block.classes + column;
  Float square[kSize];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kSize; ++i) {
    __builtin_prefetch(source + ahead, 0, 2);
    Float score;
    simd::load<kBytes, kPartial>(source, block.classes - column, 0.f, score);
    Int bits = (Int)score;
    const Int magnitude = bits & kMagnitude;
    largest = magnitude > largest ? magnitude : largest;
    bits = bits == INT32_MIN ? Int{} : bits;
    square[i] = (Float)(bits ^ (~(bits >> 31) & kMagnitude));
    source += row + i + 1 < block.rows ? block.classes : 0;
  }
  simd::transpose<float, kBytes>(square);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kSize; ++i) {
    simd::at<int32_t, kBytes>(transposed + i * kRows) = (Int)square[i];
  }
}

// Moves keys up to a threshold to the front, in their order; returns their number. `first` and
// `count` continue an earlier pass over the keys before `first`, which left `count`.
inline int64_t keep(uint64_t* keys, int64_t size, uint64_t threshold, int64_t first = 0,
                    int64_t count = 0) {
  for (int64_t i = first; i < size; ++i) {
    const uint64_t key = keys[i];
    keys[count] = key;
    count += key <= threshold;
  }
  return count;
}

#if defined(__x86_64__)
PYSEG_TARGET_AVX2 inline int64_t keep_avx2(uint64_t* keys, int64_t size, uint64_t threshold) {
  const __m256i most = with_sign(_mm256_set1_epi64x(static_cast<int64_t>(threshold)));
  int64_t count = 0, i = 0;
  for (; i + 4 <= size; i += 4) {
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + i));
    const int kept = ~above(with_sign(key), most) & 0xf;
    count += compress_4(key, kept, keys + count);  // not beyond what has been read
  }
  return keep(keys, size, threshold, i, count);
}

PYSEG_TARGET_AVX512 inline int64_t keep_avx512(uint64_t* keys, int64_t size, uint64_t threshold) {
  const __m512i most = _mm512_set1_epi64(static_cast<int64_t>(threshold));
  int64_t count = 0;
  for (int64_t i = 0; i < size; i += 8) {
    const __mmask8 valid = size - i < 8 ? (1u << (size - i)) - 1 : 0xff;
    const __m512i key = _mm512_maskz_loadu_epi64(valid, keys + i);
    const __mmask8 kept = _mm512_mask_cmple_epu64_mask(valid, key, most);
    const __m512i compressed = _mm512_maskz_compress_epi64(kept, key);
    _mm512_mask_storeu_epi64(keys + count, valid, compressed);  // not beyond what has been read
    count += __builtin_popcount(kept);
  }
  return count;
}
#endif

// The number of keys up to a threshold.
struct Count {
  template <typename Level>
  PYSEG_INLINE static void run(const uint64_t* keys, int64_t size, uint64_t threshold,
                               int64_t* result) {
    // The hardware prefetcher stops at the end of a page.
    constexpr int64_t kLine = 8, kAhead = 128 * kLine;
    int64_t count = 0, i = 0;
    for (; i + 4 * kLine <= size; i += 4 * kLine) {
      for (int64_t j = 0; j < 4; ++j) __builtin_prefetch(keys + i + kAhead + j * kLine, 0, 2);
      for (int64_t j = 0; j < 4 * kLine; ++j) count += keys[i + j] <= threshold;
    }
    for (; i < size; ++i) count += keys[i] <= threshold;
    *result = count;
  }
};

// The largest magnitude, as bits without the sign.
struct Largest {
  template <typename Level>
  PYSEG_INLINE static void run(const float* scores, int64_t size, int32_t* result) {
    int32_t largest = 0;
    for (int64_t i = 0; i < size; ++i) {
      const int32_t magnitude = std::bit_cast<int32_t>(scores[i]) & kMagnitude;
      largest = magnitude > largest ? magnitude : largest;
    }
    *result = largest;
  }
};

struct Append {
  template <typename Level>
  PYSEG_INLINE static void run(const TopKBlock& block, int64_t* next, int64_t begin, int64_t end) {
    constexpr int kBytes = Level::kBytes;
    constexpr int64_t kSize = simd::kLanes<float, kBytes>;
    alignas(64) int32_t transposed[kColumns * kRows];
    simd::Vector<int32_t, kBytes> largest = {};
    int64_t row = *next;
    for (int64_t rows; row < block.rows; row += rows) {
      rows = std::min(kRows, block.rows - row);
      if (*std::max_element(block.lists.counts + begin, block.lists.counts + end) >
          block.lists.room - rows)
        break;
      for (int64_t column = begin; column < end; column += kColumns) {
        const int64_t columns = std::min(kColumns, end - column);
        // The last columns are read with some before them: loads of partial vectors are slow.
        const int64_t from = std::max<int64_t>(0, std::min(column, block.classes - kColumns));
        int32_t* const scores = transposed + (column - from) * kRows;
        for (int64_t c = (column - from) / kSize * kSize; from + c < column + columns; c += kSize) {
          for (int64_t r = 0; r < rows; r += kSize) {
            int32_t* const square = transposed + c * kRows + r;
            if (from + c + kSize <= block.classes) {
              transpose<kBytes, false>(block, row + r, from + c, square, largest);
            } else {
              transpose<kBytes, true>(block, row + r, from + c, square, largest);
            }
          }
        }
        for (int64_t r = 0; r < rows && block.candidates != nullptr; ++r) {
          const uint8_t* const counts = block.candidates + (row + r) * block.classes + column;
          for (int64_t c = 0; c < columns; ++c) scores[c * kRows + r] |= counts[c] - 1;
        }
        const Tile tile = {row, rows, column, columns, scores};
        append<kBytes>(block, tile);
      }
    }
    *next = simd::maximum<int32_t, kBytes>(largest) <= kInfinity ? row : -1;
  }
};

}  // namespace top_k_detail

// Whether no score is a NaN.
inline bool top_k_numbers(const float* scores, int64_t size, Simd level = best_simd()) {
  int32_t largest = 0;
  int32_t* const result = &largest;
  simd::run<top_k_detail::Largest>(level, scores, size, result);
  return largest <= top_k_detail::kInfinity;
}

// Appends rows from `row` on to the classes begin <= c < end, until one of them is full. Returns
// the next row, or -1 if a score is a NaN: the caller must then undo the appending.
inline int64_t top_k_append(const TopKBlock& block, int64_t row, int64_t begin, int64_t end,
                            Simd level = best_simd()) {
  if (begin == end) return block.rows;
  int64_t* const next = &row;
  simd::run<top_k_detail::Append>(level, block, next, begin, end);
  return row;
}

// Keeps the k best of `size` > k keys and, where that is faster, at most `more` of the next best.
// `threshold` becomes the worst key that is kept. Returns the number of keys kept.
inline int64_t top_k_best(uint64_t* keys, int64_t size, int64_t k, int64_t more,
                          uint64_t* threshold, Simd level = best_simd()) {
  using namespace top_k_detail;
  // A sample gives a pivot with few more than k keys up to it; two passes over the keys are faster
  // than a selection. A margin of 1.5 standard deviations above the expected rank is too small once
  // in 15 times, one of 4 hardly ever.
  constexpr int64_t kSample = 1024;
  if (size >= 8 * kSample) {
    uint64_t sample[kSample];
    for (int64_t i = 0; i < kSample; ++i) sample[i] = keys[i * (size / kSample)];
    const double share = static_cast<double>(k) / static_cast<double>(size);
    const double deviation = std::sqrt(share * (1 - share) * kSample);
    for (const double margin : {1.5, 4.}) {
      const auto place = static_cast<int64_t>(share * kSample + margin * deviation);
      if (place >= kSample) break;
      std::nth_element(sample, sample + place, sample + kSample);
      const uint64_t pivot = sample[place];
      const uint64_t* const read = keys;
      int64_t count = 0;
      int64_t* const result = &count;
      simd::run<Count>(level, read, size, pivot, result);
      if (count < k) continue;
      if (count > k + more) break;
      *threshold = pivot;
#if defined(__x86_64__)
      if (level == Simd::kAvx512) return keep_avx512(keys, size, pivot);
      if (level == Simd::kAvx2) return keep_avx2(keys, size, pivot);
#endif
      return keep(keys, size, pivot);
    }
  }
  std::nth_element(keys, keys + k - 1, keys + size);
  *threshold = keys[k - 1];
  return k;
}

// Cuts the classes begin <= c < end that have more than k keys and no room for `wanted` more to
// their k best, or a few more. If they have room for k + kTopKLeastRoom keys, then at least
// kTopKLeastRoom places are free afterwards.
inline void top_k_cut(const TopKLists& lists, int64_t k, int64_t wanted, int64_t begin, int64_t end,
                      Simd level = best_simd()) {
  const int64_t spare = lists.room - k;
  const int64_t more = std::max<int64_t>(0, std::min(spare / 4, spare - kTopKLeastRoom));
  for (int64_t c = begin; c < end; ++c) {
    int64_t& count = lists.counts[c];
    if (count <= std::max(k, lists.room - wanted)) continue;
    count = top_k_best(lists.keys + c * lists.room, count, k, more, lists.thresholds + c, level);
  }
}

// Adds the rows from `row` on, without NaN, to the classes begin <= c < end, of which some may be
// full.
inline void top_k_add(const TopKBlock& block, int64_t k, int64_t row, int64_t begin, int64_t end,
                      Simd level = best_simd()) {
  // One full class stops all of them, and threads wait for each other: so half-full classes are cut
  // too.
  const int64_t wanted = std::max(kTopKLeastRoom, (block.lists.room - k) / 2);
  do {
    top_k_cut(block.lists, k, wanted, begin, end, level);
    row = top_k_append(block, row, begin, end, level);
  } while (row < block.rows);
}

}  // namespace pyseg
