// The checks of rated_bce_with_logits, the same for every device.
#pragma once

#include <cmath>
#include <optional>
#include <utility>

#include "../include/pyseg/rated_bce_shape.h"
#include "checks.h"
#include "dispatch.h"

namespace pyseg {

// Checks shapes, dtypes and devices; values are checked on the device.
inline void check_rated_bce(const Tensor& logits,                              // (B, C)
                            const Tensor& offsets,                             // (B + 1)
                            const Tensor& classes,                             // (R)
                            const Tensor& scores,                              // (R)
                            const std::optional<Tensor>& correlation_offsets,  // (C + 1)
                            const std::optional<Tensor>& correlation_columns,  // (nnz)
                            const std::optional<Tensor>& correlation_values,   // (nnz)
                            double rated_weight, double unrated_weight, double absent_evidence) {
  using torch::headeronly::ScalarType;
  for (const auto& [weight, name] :
       {std::pair{rated_weight, "rated_weight"}, std::pair{unrated_weight, "unrated_weight"}}) {
    PYSEG_CHECK(weight >= 0 && std::isfinite(weight), name,
                ": expected a finite number of at least 0, found ", weight);
  }
  PYSEG_CHECK(absent_evidence >= 0 && absent_evidence <= 1,
              "absent_evidence: expected a number in [0, 1], found ", absent_evidence);
  check_dimensions(logits, "logits", "(B, C)");
  const auto sums = accumulate_dtype(logits.scalar_type());
  const auto check = [&](const Tensor& tensor, const char* name, ScalarType dtype) {
    check_dtype(tensor, name, dtype);
    check_device(tensor, name, logits, "logits");
  };
  check_shape(offsets, "offsets", "(B + 1,)", {logits.size(0) + 1});
  check_dimensions(classes, "classes", "(R)");
  check_shape(scores, "scores", "(R,)", {classes.size(0)});
  check(offsets, "offsets", ScalarType::Long);
  check(classes, "classes", ScalarType::Long);
  check(scores, "scores", sums);
  const bool correlated = correlation_offsets.has_value();
  PYSEG_CHECK(
      correlated == correlation_columns.has_value() && correlated == correlation_values.has_value(),
      "correlation_offsets, correlation_columns, correlation_values: expected all or none, found "
      "some");
  if (!correlated) return;
  check_shape(*correlation_offsets, "correlation_offsets", "(C + 1,)", {logits.size(1) + 1});
  check_dimensions(*correlation_columns, "correlation_columns", "(nnz)");
  check_shape(*correlation_values, "correlation_values", "(nnz,)", {correlation_columns->size(0)});
  check(*correlation_offsets, "correlation_offsets", ScalarType::Long);
  check(*correlation_columns, "correlation_columns", ScalarType::Long);
  check(*correlation_values, "correlation_values", sums);
}

inline void check_rated_bce_backward(const Tensor& grad_output,  // ()
                                     const Tensor& grad)         // (B, C)
{
  check_shape(grad_output, "grad_output", "()", {});
  check_dtype(grad_output, "grad_output", accumulate_dtype(grad.scalar_type()));
  check_device(grad_output, "grad_output", grad, "grad");
  check_dimensions(grad, "grad", "(B, C)");
}

}  // namespace pyseg
