// The CPU kernels of pyseg/top_k.h against plain loops, at every vector level this processor has.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "expect.h"
#include "pyseg/top_k.h"

namespace {

using pyseg::Simd;

constexpr uint64_t kAll = std::numeric_limits<uint64_t>::max();

uint64_t key_of(float score, uint32_t id) {
  const uint32_t bits = score == 0 ? 0 : std::bit_cast<uint32_t>(score);
  return uint64_t{bits >> 31 != 0 ? bits : bits ^ 0x7fffffff} << 32 | id;
}

// Scores with ties, infinities and both zeros, and unsorted ids. Arrays have exactly the required
// size, so that the sanitizers see every access beyond them.
struct Case {
  int64_t rows, classes, room;
  std::vector<float> scores;
  std::vector<uint32_t> ids;
  std::vector<uint8_t> candidates;
  std::vector<uint64_t> thresholds, keys;
  std::vector<int64_t> counts;

  Case(int64_t rows, int64_t classes, int64_t slack)
      : rows(rows),
        classes(classes),
        room(rows + slack),
        scores(rows * classes),
        ids(rows),
        candidates(rows * classes),
        thresholds(classes),
        keys(classes * room, 7),
        counts(classes) {
    std::mt19937_64 generator(rows * 1000 + classes);
    const float infinity = std::numeric_limits<float>::infinity();
    const float values[] = {-infinity, -2.f, -1e-45f, -0.f, 0.f, 1e-45f, 0.5f, 3e38f, infinity};
    for (float& score : scores) score = values[generator() % std::size(values)];
    for (uint32_t& id : ids) id = static_cast<uint32_t>(generator());
    for (uint8_t& candidate : candidates) candidate = generator() % 4 != 0;
    for (int64_t c = 0; c < classes; ++c) {
      counts[c] = slack == 0 ? 0 : static_cast<int64_t>(generator() % (slack + 1));
      thresholds[c] = kAll;
      if (rows > 0 && c % 3 != 0) thresholds[c] = key_of(values[c % std::size(values)], ids[0]);
    }
  }

  pyseg::TopKBlock block(bool restricted) {
    return {rows,
            classes,
            scores.data(),
            ids.data(),
            restricted ? candidates.data() : nullptr,
            {room, thresholds.data(), keys.data(), counts.data()}};
  }
};

void test_append(int64_t rows, int64_t classes, int64_t slack, bool restricted, Simd level) {
  const std::string what = "level " + std::to_string(static_cast<int>(level)) + " (" +
                           std::to_string(rows) + ", " + std::to_string(classes) + ") slack " +
                           std::to_string(slack) + (restricted ? " restricted" : "");
  Case found(rows, classes, slack), expected = found;
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      const uint64_t key = key_of(found.scores[r * classes + c], found.ids[r]);
      if (key >= found.thresholds[c]) continue;
      if (restricted && found.candidates[r * classes + c] == 0) continue;
      expected.keys[c * found.room + expected.counts[c]++] = key;
    }
  }
  // In two parts, as two threads would.
  const pyseg::TopKBlock block = found.block(restricted);
  const int64_t middle = classes / 3;
  expect(pyseg::top_k_append(block, 0, 0, middle, level) == rows, what + ": rows");
  expect(pyseg::top_k_append(block, 0, middle, classes, level) == rows, what + ": rows");
  expect(found.counts == expected.counts, what + ": counts");
  bool same = true;
  for (int64_t c = 0; c < classes; ++c) {  // keys beyond the count are undefined
    const auto begin = found.keys.begin() + c * found.room;
    same =
        same && std::equal(begin, begin + found.counts[c], expected.keys.begin() + c * found.room);
  }
  expect(same, what + ": keys");
}

void test_nan(Simd level) {
  const int64_t rows = 70, classes = 19;
  for (const int64_t place : {int64_t{0}, classes - 1, 66 * classes + 17, rows * classes - 1}) {
    for (const uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
      Case example(rows, classes, 1);
      example.scores[place] = std::bit_cast<float>(bits);
      const pyseg::TopKBlock block = example.block(false);
      int64_t worst = rows;
      for (int64_t c = 0; c < classes; ++c) {
        worst = std::min(worst, pyseg::top_k_append(block, 0, c, c + 1, level));
        std::fill(example.counts.begin(), example.counts.end(), 0);
      }
      const std::string what = "a NaN at " + std::to_string(place);
      expect(worst == -1, what);
      const auto size = static_cast<int64_t>(example.scores.size());
      expect(!pyseg::top_k_numbers(example.scores.data(), size, level), what + ", looked for");
      example.scores[place] = -std::numeric_limits<float>::infinity();
      expect(pyseg::top_k_numbers(example.scores.data(), size, level), what + " no more");
    }
  }
}

void test_cut(std::vector<uint64_t> keys, int64_t k, int64_t more, Simd level,
              const std::string& name) {
  const std::string what = name + " level " + std::to_string(static_cast<int>(level)) + " k " +
                           std::to_string(k) + " of " + std::to_string(keys.size());
  std::vector<uint64_t> sorted = keys;
  std::sort(sorted.begin(), sorted.end());
  uint64_t threshold = 0;
  const auto size = static_cast<int64_t>(keys.size());
  const int64_t left = pyseg::top_k_best(keys.data(), size, k, more, &threshold, level);
  expect(left >= k && left <= k + more, what + ": " + std::to_string(left) + " are left");
  std::sort(keys.begin(), keys.begin() + left);
  expect(std::equal(keys.begin(), keys.begin() + left, sorted.begin()), what + ": others are left");
  expect(threshold == sorted[left - 1], what + ": threshold");
}

void test_cuts(Simd level) {
  std::mt19937_64 generator(0);
  for (const int64_t size : {2, 300, 8191, 8192, 30001}) {
    std::vector<uint64_t> keys(size);
    for (uint64_t& key : keys) key = generator();
    for (const int64_t k : {int64_t{1}, size / 2, size * 2 / 3, size - 1}) {
      for (const int64_t more : {int64_t{0}, size / 8}) {
        test_cut(keys, k, more, level, "random");
        std::vector<uint64_t> others = keys;
        std::sort(others.begin(), others.end());
        test_cut(others, k, more, level, "rising");
        std::reverse(others.begin(), others.end());
        test_cut(others, k, more, level, "falling");
        // The keys that the sample sees are worse, or better, than all others.
        for (const uint64_t seen : {uint64_t{0}, kAll}) {
          others = keys;
          for (int64_t i = 0; i < size; i += std::max<int64_t>(1, size / 1024)) others[i] = seen;
          test_cut(others, k, more, level, "misleading");
        }
        test_cut(std::vector<uint64_t>(size, 5), k, more, level, "equal");
      }
    }
  }
}

// Lists with little room, which fill repeatedly.
void test_add(int64_t rows, int64_t k, int64_t slack, Simd level) {
  const std::string what = "level " + std::to_string(static_cast<int>(level)) + " k " +
                           std::to_string(k) + " of " + std::to_string(rows);
  const int64_t classes = 5;
  Case example(rows, classes, 0);
  example.room = k + pyseg::kTopKLeastRoom + slack;
  example.keys.assign(classes * example.room, 7);
  example.thresholds.assign(classes, kAll);
  const pyseg::TopKBlock block = example.block(true);
  const int64_t row = pyseg::top_k_append(block, 0, 0, classes, level);
  const int64_t most = *std::max_element(example.counts.begin(), example.counts.end());
  const int64_t next = std::min(pyseg::kTopKLeastRoom, rows - row);
  expect(row == rows || most + next > example.room, what + ": stops before a class is full");
  if (row < rows) pyseg::top_k_add(block, k, row, 0, classes, level);
  pyseg::top_k_cut(block.lists, k, example.room, 0, classes, level);
  for (int64_t c = 0; c < classes; ++c) {
    std::vector<uint64_t> expected;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t place = r * classes + c;
      if (example.candidates[place] == 0) continue;
      expected.push_back(key_of(example.scores[place], example.ids[r]));
    }
    std::sort(expected.begin(), expected.end());
    const auto begin = example.keys.begin() + c * example.room;
    const int64_t count = example.counts[c];
    const int64_t best = std::min(k, static_cast<int64_t>(expected.size()));
    expect(count >= best && count <= example.room, what + ": count");
    std::sort(begin, begin + count);
    expect(std::equal(begin, begin + best, expected.begin()), what + ": keys");
  }
}

}  // namespace

int main() {
  for (int i = 0; i <= static_cast<int>(pyseg::best_simd()); ++i) {
    const auto level = static_cast<Simd>(i);
    for (const int64_t rows : {0, 1, 3, 15, 16, 17, 64, 65, 200}) {
      for (const int64_t classes : {1, 3, 4, 15, 16, 17, 33, 100}) {
        for (const int64_t slack : {0, 1, 40}) {
          test_append(rows, classes, slack, false, level);
          test_append(rows, classes, slack, true, level);
        }
      }
    }
    for (const int64_t rows : {1, 63, 64, 65, 500}) {
      for (const int64_t k : {1, 2, 60, 200}) {
        for (const int64_t slack : {0, 1, 100}) test_add(rows, k, slack, level);
      }
    }
    test_nan(level);
    test_cuts(level);
  }
  std::printf("top_k: %s\n", failures == 0 ? "ok" : "failed");
  return failures != 0;
}
