// rated_bce_with_logits for CPU tensors: a thread takes whole rows.
#include "pyseg/rated_bce.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../torch/dispatch.h"
#include "../torch/rated_bce_checks.h"
#include "../torch/rated_bce_tensors.h"

namespace pyseg {
namespace {

using torch::stable::parallel_for;

// Checks that offsets go from 0 to size, or with `padded` to at most that.
void check_offsets(const int64_t* offsets, int64_t rows, int64_t size, bool padded,
                   const char* name) {
  const int64_t last = offsets[rows];
  PYSEG_CHECK(offsets[0] == 0 && (padded ? last <= size : last == size), name, ": expected 0 to ",
              padded ? "at most " : "", size, ", found ", offsets[0], " to ", last);
  for (int64_t i = 0; i < rows; ++i) {
    PYSEG_CHECK(offsets[i] <= offsets[i + 1], name, ": expected no decrease, found ", offsets[i],
                " before ", offsets[i + 1], " at row ", i);
  }
}

// Checks everything that a kernel uses as an index or relies on.
template <typename T, typename A>
void check_values(const RatedBceInput<T, A>& in) {
  const int64_t batch = in.batch, classes = in.classes;
  const auto& ratings = in.ratings;
  const auto& correlation = in.correlation;
  check_offsets(ratings.offsets, batch, ratings.size, true, "offsets");
  std::vector<int64_t> rated_by(classes, -1);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t r = ratings.offsets[b]; r < ratings.offsets[b + 1]; ++r) {
      const int64_t j = ratings.classes[r];
      PYSEG_CHECK(j >= 0 && j < classes, "classes: expected 0 <= class < ", classes, ", found ", j,
                  " in row ", b);
      PYSEG_CHECK(rated_by[j] != b, "classes: expected each once in a row, found ", j,
                  " twice in row ", b);
      PYSEG_CHECK(ratings.scores[r] >= 0 && ratings.scores[r] <= 1,
                  "scores: expected numbers in [0, 1], found ", ratings.scores[r], " in row ", b);
      rated_by[j] = b;
    }
  }
  if (correlation.offsets == nullptr) return;
  check_offsets(correlation.offsets, classes, correlation.size, false, "correlation_offsets");
  for (int64_t p = 0; p < correlation.size; ++p) {
    PYSEG_CHECK(correlation.columns[p] >= 0 && correlation.columns[p] < classes,
                "correlation_columns: expected 0 <= class < ", classes, ", found ",
                correlation.columns[p]);
    PYSEG_CHECK(correlation.values[p] >= 0 && correlation.values[p] <= 1,
                "correlation_values: expected numbers in [0, 1], found ", correlation.values[p]);
  }
}

std::tuple<Tensor, Tensor> rated_bce_with_logits_cpu(
    const Tensor& logits,                              // (B, C)
    const Tensor& offsets,                             // (B + 1)
    const Tensor& classes,                             // (R)
    const Tensor& scores,                              // (R)
    const std::optional<Tensor>& correlation_offsets,  // (C + 1)
    const std::optional<Tensor>& correlation_columns,  // (nnz)
    const std::optional<Tensor>& correlation_values,   // (nnz)
    double rated_weight, double unrated_weight, double absent_evidence, bool needs_grad) {
  check_rated_bce(logits, offsets, classes, scores, correlation_offsets, correlation_columns,
                  correlation_values, rated_weight, unrated_weight, absent_evidence);
  const RatedBceTensors tensors(logits, offsets, classes, scores, correlation_offsets,
                                correlation_columns, correlation_values, needs_grad);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Accumulate<T>;
    const auto in = tensors.input<T, A>(rated_weight, unrated_weight, absent_evidence);
    check_values(in);
    A* const row_loss = write<A>(tensors.row_loss);
    T* const gradient = tensors.gradient<T>();
    parallel_for(0, in.batch, 4, [&](int64_t begin, int64_t end) {
      rated_bce<T>(in, row_loss, gradient, begin, end);
    });
    *write<A>(tensors.loss) = rated_bce_mean(row_loss, in.batch);
  };
  dispatch_floating<Float16, BFloat16>(logits.scalar_type(), "rated_bce_with_logits", run);
  return tensors.result();
}

// Writes the result to `result`, which may be `grad`: there a scale of 1 leaves nothing to do.
void scale(const Tensor& grad_output, const Tensor& grad, const Tensor& result) {
  const auto run = [&]<typename T>(std::type_identity<T>) {
    const T* const from = read<T>(grad);
    T* const to = write<T>(result);
    const auto factor =
        *read<Accumulate<T>>(grad_output) * rated_bce_missing_share<T>(grad.size(0));
    if (factor == 1 && to == from) return;
    parallel_for(0, grad.numel(), 65536, [&](int64_t begin, int64_t end) {
      rated_bce_scale<T>(from, factor, to, begin, end);
    });
  };
  dispatch_floating<Float16, BFloat16>(grad.scalar_type(), "rated_bce_with_logits_backward", run);
}

Tensor rated_bce_with_logits_backward_cpu(const Tensor& grad_output,  // ()
                                          const Tensor& grad,         // (B, C)
                                          const std::optional<Tensor>& /*logits*/) {
  check_rated_bce_backward(grad_output, grad);
  const Tensor grad_ = in_order(grad), result = new_tensor(grad_);
  scale(grad_output, grad_, result);
  return result;
}

void rated_bce_with_logits_backward_in_place_cpu(const Tensor& grad_output,  // ()
                                                 const Tensor& grad)         // (B, C)
{
  check_rated_bce_backward(grad_output, grad);
  const Tensor grad_ = in_order(grad);  // where autograd calls this, grad itself
  scale(grad_output, grad_, grad_);
  if (!grad.is_contiguous()) torch::stable::copy_(const_cast<Tensor&>(grad), grad_);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CPU, m) {
  m.impl("rated_bce_with_logits", TORCH_BOX(&rated_bce_with_logits_cpu));
  m.impl("rated_bce_with_logits_backward", TORCH_BOX(&rated_bce_with_logits_backward_cpu));
  m.impl("rated_bce_with_logits_backward_",
         TORCH_BOX(&rated_bce_with_logits_backward_in_place_cpu));
}

}  // namespace pyseg
