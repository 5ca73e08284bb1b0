// Inputs and outputs of rated_bce_with_logits as tensors: made contiguous and allocated the same
// way for every device, and passed to the kernels as pointers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../include/pyseg/rated_bce_shape.h"
#include "dispatch.h"
#include "memory.h"
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
      : logits(in_order(logits)),
        offsets(in_order(offsets)),
        classes(in_order(classes)),
        scores(in_order(scores)),
        correlation_offsets(in_order(correlation_offsets)),
        correlation_columns(in_order(correlation_columns)),
        correlation_values(in_order(correlation_values)) {
    const auto sums = accumulate_dtype(logits.scalar_type());
    loss = new_tensor(logits, {}, sums);
    row_loss = new_tensor(logits, {logits.size(0)}, sums);
    grad = needs_grad ? new_tensor(logits) : new_tensor(logits, {0});
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
