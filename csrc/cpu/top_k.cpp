// top_k_update and top_k_cut for CPU tensors.
#include "pyseg/top_k.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../torch/checks.h"
#include "../torch/dispatch.h"
#include "thread_pool.h"

namespace pyseg {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;
using torch::stable::get_num_threads;

// Scores that are enough for a thread.
constexpr int64_t kWork = 1 << 17;
// Classes whose scores are read together: a cache line.
constexpr int64_t kColumns = 16;

TopKLists check_lists(int64_t k,
                      const Tensor& thresholds,  // (C)
                      const Tensor& keys,        // (C, room)
                      const Tensor& counts)      // (C)
{
  check_dimensions(keys, "keys", "(C, room)");
  const int64_t C = keys.size(0), room = keys.size(1);
  check_shape(thresholds, "thresholds", "(C,)", {C});
  check_shape(counts, "counts", "(C,)", {C});
  check_dtype(thresholds, "thresholds", ScalarType::UInt64);
  check_dtype(keys, "keys", ScalarType::UInt64);
  check_dtype(counts, "counts", ScalarType::Long);
  check_contiguous(thresholds, "thresholds");
  check_contiguous(keys, "keys");
  check_contiguous(counts, "counts");
  PYSEG_CHECK(k >= 1, "k: expected at least 1, found ", k);
  const TopKLists lists = {room, write<uint64_t>(thresholds), write<uint64_t>(keys),
                           write<int64_t>(counts)};
  for (int64_t c = 0; c < C; ++c) {
    PYSEG_CHECK(lists.counts[c] >= 0 && lists.counts[c] <= room, "counts: expected 0..", room,
                ", found ", lists.counts[c], " for class ", c);
  }
  return lists;
}

// The first class of each task, then the end of the last one.
std::vector<int64_t> shares(int64_t rows, int64_t classes) {
  const int64_t most = std::min<int64_t>(get_num_threads(), classes / kColumns);
  const int64_t tasks = std::clamp<int64_t>(rows * classes / kWork, 1, std::max<int64_t>(most, 1));
  std::vector<int64_t> bounds(tasks + 1, classes);
  for (int64_t i = 0; i < tasks; ++i) {
    bounds[i] = (classes * i / tasks + kColumns / 2) / kColumns * kColumns;
  }
  return bounds;
}

bool top_k_update_cpu(const Tensor& scores,                     // (S, C)
                      const Tensor& ids,                        // (S)
                      const std::optional<Tensor>& candidates,  // (S, C)
                      int64_t k,
                      Tensor thresholds,  // (C)
                      Tensor keys,        // (C, room)
                      Tensor counts)      // (C)
{
  check_dimensions(scores, "scores", "(S, C)");
  const int64_t S = scores.size(0), C = scores.size(1);
  check_shape(ids, "ids", "(S,)", {S});
  check_dtype(scores, "scores", ScalarType::Float);
  check_dtype(ids, "ids", ScalarType::UInt32);
  check_shape(counts, "counts", "(C,)", {C});
  if (candidates) {
    check_shape(*candidates, "candidates", "(S, C)", {S, C});
    check_dtype(*candidates, "candidates", ScalarType::Bool);
  }
  const TopKLists lists = check_lists(k, thresholds, keys, counts);
  if (S == 0 || C == 0) return true;
  const std::vector<int64_t> before(lists.counts, lists.counts + C);
  const int64_t largest = *std::max_element(before.begin(), before.end());
  PYSEG_CHECK(largest + S <= lists.room || k <= lists.room - kTopKLeastRoom,
              "keys: expected room for ",
              std::min(largest + S - kTopKLeastRoom, k) + kTopKLeastRoom, " of each class, found ",
              lists.room);
  const Tensor scores_ = contiguous(scores), ids_ = contiguous(ids);
  std::optional<Tensor> candidates_;
  if (candidates) candidates_ = contiguous(*candidates);
  const TopKBlock block = {S,
                           C,
                           read<float>(scores_),
                           read<uint32_t>(ids_),
                           candidates_ ? read<uint8_t>(*candidates_) : nullptr,
                           lists};
  const std::vector<int64_t> bounds = shares(S, C);
  const auto tasks = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<int64_t> next(tasks);
  ThreadPool::run(get_num_threads(), tasks,
                  [&](int64_t i) { next[i] = top_k_append(block, 0, bounds[i], bounds[i + 1]); });
  // Nothing is cut before all scores are known to be numbers: appending can be undone, cutting not.
  const int64_t seen = *std::min_element(next.begin(), next.end());
  if (seen < 0 || !top_k_numbers(block.scores + seen * C, (S - seen) * C)) {
    std::copy(before.begin(), before.end(), lists.counts);
    return false;
  }
  if (seen == S) return true;
  ThreadPool::run(get_num_threads(), tasks,
                  [&](int64_t i) { top_k_add(block, k, next[i], bounds[i], bounds[i + 1]); });
  return true;
}

void top_k_cut_cpu(int64_t k, int64_t wanted, Tensor thresholds, Tensor keys, Tensor counts) {
  PYSEG_CHECK(wanted >= 0, "wanted: expected at least 0, found ", wanted);
  const TopKLists lists = check_lists(k, thresholds, keys, counts);
  ThreadPool::run(get_num_threads(), keys.size(0),
                  [&](int64_t c) { top_k_cut(lists, k, wanted, c, c + 1); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CPU, m) {
  m.impl("top_k_update", TORCH_BOX(&top_k_update_cpu));
  m.impl("top_k_cut", TORCH_BOX(&top_k_cut_cpu));
}

}  // namespace pyseg
