// Inputs and outputs of rated_bce_with_logits as tensors: made contiguous and allocated the same
// way for every device, and passed to the kernels as pointers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../include/pyseg/rated_bce_shape.h"
#include "dispatch.h"
#include "rated_bce_checks.h"

namespace pyseg {

struct RatedBceTensors {
  Tensor logits;                              // (B, C)
  Tensor offsets;                             // (B + 1)
  Tensor classes;                             // (R)
  Tensor scores;                              // (R)
  std::optional<Tensor> correlation_offsets;  // (C + 1)
  std::optional<Tensor> correlation_columns;  // (nnz)
  std::optional<Tensor> correlation_values;   // (nnz)
  Tensor loss;                                // ()
  Tensor row_loss;                            // (B), workspace
  Tensor grad;                                // (B, C), or (0) where it is not needed

  RatedBceTensors(const Tensor& logits, const Tensor& offsets, const Tensor& classes,
                  const Tensor& scores, const std::optional<Tensor>& correlation_offsets,
                  const std::optional<Tensor>& correlation_columns,
                  const std::optional<Tensor>& correlation_values, bool needs_grad)
      : logits(torch::stable::contiguous(logits)),
        offsets(torch::stable::contiguous(offsets)),
        classes(torch::stable::contiguous(classes)),
        scores(torch::stable::contiguous(scores)) {
    if (correlation_offsets) {
      this->correlation_offsets = torch::stable::contiguous(*correlation_offsets);
      this->correlation_columns = torch::stable::contiguous(*correlation_columns);
      this->correlation_values = torch::stable::contiguous(*correlation_values);
    }
    const auto sums = accumulate_dtype(logits.scalar_type());
    loss = torch::stable::new_empty(logits, {}, sums);
    row_loss = torch::stable::new_empty(logits, {logits.size(0)}, sums);
    grad = needs_grad ? torch::stable::empty_like(this->logits)
                      : torch::stable::new_empty(logits, {0});
  }

  template <typename T, typename A>
  RatedBceInput<T, A> input(double rated_weight, double unrated_weight,
                            double absent_evidence) const {
    RatedBceInput<T, A> in{
        logits.size(0),
        logits.size(1),
        read<T>(logits),
        {classes.size(0), read<int64_t>(offsets), read<int64_t>(classes), read<A>(scores)},
        {},
        static_cast<A>(rated_weight),
        static_cast<A>(unrated_weight),
        static_cast<A>(absent_evidence)};
    if (correlation_offsets) {
      in.correlation = {correlation_columns->size(0), read<int64_t>(*correlation_offsets),
                        read<int64_t>(*correlation_columns), read<A>(*correlation_values)};
    }
    return in;
  }

  template <typename T>
  T* gradient() const {
    return grad.dim() == 2 ? write<T>(grad) : nullptr;
  }

  std::tuple<Tensor, Tensor> result() const { return {loss, grad}; }
};

}  // namespace pyseg
