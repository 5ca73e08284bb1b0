// top_k_append and top_k_cut for CPU tensors, on the thread that calls them.
#include "pyseg/top_k.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../torch/checks.h"
#include "../torch/dispatch.h"

namespace pyseg {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;

void check_kept(const Tensor& thresholds,  // (C)
                const Tensor& keys,        // (C, room)
                const Tensor& counts)      // (C)
{
  check_dimensions(keys, "keys", "(C, room)");
  check_shape(thresholds, "thresholds", "(C,)", {keys.size(0)});
  check_shape(counts, "counts", "(C,)", {keys.size(0)});
  check_dtype(thresholds, "thresholds", ScalarType::UInt64);
  check_dtype(keys, "keys", ScalarType::UInt64);
  check_dtype(counts, "counts", ScalarType::Long);
  check_contiguous(thresholds, "thresholds");
  check_contiguous(keys, "keys");
  check_contiguous(counts, "counts");
}

void check_counts(const int64_t* counts, int64_t begin, int64_t end, int64_t room, int64_t rows) {
  for (int64_t c = begin; c < end; ++c) {
    STD_TORCH_CHECK(counts[c] >= 0 && counts[c] <= room - rows, "counts must lie in 0..",
                    room - rows, ", got ", counts[c], " for class ", c);
  }
}

bool top_k_append_cpu(const Tensor& scores,                     // (S, C)
                      const Tensor& ids,                        // (S)
                      const std::optional<Tensor>& candidates,  // (S, C)
                      const Tensor& thresholds,                 // (C)
                      Tensor keys,                              // (C, room)
                      Tensor counts,                            // (C)
                      int64_t begin, int64_t end) {
  check_dimensions(scores, "scores", "(S, C)");
  const int64_t S = scores.size(0), C = scores.size(1);
  check_shape(ids, "ids", "(S,)", {S});
  check_dtype(scores, "scores", ScalarType::Float);
  check_dtype(ids, "ids", ScalarType::UInt32);
  check_kept(thresholds, keys, counts);
  check_shape(counts, "counts", "(C,)", {C});
  if (candidates) {
    check_shape(*candidates, "candidates", "(S, C)", {S, C});
    check_dtype(*candidates, "candidates", ScalarType::Bool);
  }
  STD_TORCH_CHECK(0 <= begin && begin <= end && end <= C, "begin and end must lie in 0..", C,
                  ", got ", begin, " and ", end);
  const int64_t room = keys.size(1);
  check_counts(read<int64_t>(counts), begin, end, room, S);
  const Tensor scores_ = contiguous(scores), ids_ = contiguous(ids);
  std::optional<Tensor> candidates_;
  if (candidates) candidates_ = contiguous(*candidates);
  int64_t* const first = write<int64_t>(counts);
  const std::vector<int64_t> before(first + begin, first + end);
  const TopKBlock block = {S,
                           C,
                           read<float>(scores_),
                           read<uint32_t>(ids_),
                           candidates_ ? read<uint8_t>(*candidates_) : nullptr,
                           read<uint64_t>(thresholds),
                           room,
                           write<uint64_t>(keys),
                           first};
  const bool numbers = top_k_append(block, begin, end);
  if (!numbers) std::copy(before.begin(), before.end(), first + begin);
  return numbers;
}

void top_k_cut_cpu(int64_t k, int64_t wanted, Tensor thresholds, Tensor keys, Tensor counts) {
  check_kept(thresholds, keys, counts);
  const int64_t C = keys.size(0), room = keys.size(1);
  STD_TORCH_CHECK(k >= 1, "k must be at least 1, got ", k);
  check_counts(read<int64_t>(counts), 0, C, room, 0);
  uint64_t* const worst = write<uint64_t>(thresholds);
  uint64_t* const all = write<uint64_t>(keys);
  int64_t* const sizes = write<int64_t>(counts);
  for (int64_t c = 0; c < C; ++c) {
    if (sizes[c] <= k || sizes[c] <= room - wanted) continue;
    sizes[c] = top_k_cut(all + c * room, sizes[c], k, (room - k) / 4, worst + c);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CPU, m) {
  m.impl("top_k_append", TORCH_BOX(&top_k_append_cpu));
  m.impl("top_k_cut", TORCH_BOX(&top_k_cut_cpu));
}

}  // namespace pyseg
