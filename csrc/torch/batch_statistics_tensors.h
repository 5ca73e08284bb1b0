// Arguments and results of batch_statistics_ as tensors: checked and allocated the same way for
// every device, and passed to the kernels as pointers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../include/pyseg/batch_statistics.h"
#include "checks.h"
#include "dispatch.h"
#include "memory.h"
#include "vlad_checks.h"

namespace pyseg {

struct BatchStatisticsTensors {
  Tensor x;                             // (..., C)
  Tensor weight;                        // (C)
  Tensor bias;                          // (C)
  std::optional<Tensor> deferred_bias;  // (C)
  Tensor given_mean;                    // (C), to change
  Tensor given_var;                     // (C), likewise
  Tensor running_mean;                  // these, or contiguous copies
  Tensor running_var;
  Tensor moments;  // (2, C)
  Tensor norm;     // (4, C)
  int64_t rows, columns;

  BatchStatisticsTensors(const Tensor& x_, const Tensor& weight_, const Tensor& bias_,
                         const std::optional<Tensor>& deferred_bias_, const Tensor& running_mean_,
                         const Tensor& running_var_)
      : given_mean(running_mean_), given_var(running_var_) {
    PYSEG_CHECK(x_.dim() > 0, "x: expected shape (..., C), found ()");
    columns = x_.size(x_.dim() - 1);
    rows = columns == 0 ? 0 : x_.numel() / columns;
    const auto check = [&](const Tensor& tensor, const char* name) {
      check_shape(tensor, name, "(C,)", {columns});
      check_sums(tensor, name, x_, "x");
    };
    check(weight_, "weight");
    check(bias_, "bias");
    if (deferred_bias_) check(*deferred_bias_, "deferred_bias");
    check(given_mean, "running_mean");
    check(given_var, "running_var");
    x = in_order(x_);
    weight = in_order(weight_);
    bias = in_order(bias_);
    deferred_bias = in_order(deferred_bias_);
    running_mean = in_order(given_mean);
    running_var = in_order(given_var);
    const auto sums = accumulate_dtype(x.scalar_type());
    moments = new_tensor(x, {2, columns}, sums);
    norm = new_tensor(x, {4, columns}, sums);
  }

  // Without rows the running statistics stay.
  template <typename A>
  BatchStatistics<A> pointers(double momentum, double eps, bool unbiased) const {
    const double count = static_cast<double>(rows);
    return {columns,
            read<A>(moments),
            read<A>(weight),
            read<A>(bias),
            deferred_bias ? read<A>(*deferred_bias) : nullptr,
            static_cast<A>(rows == 0 ? 0 : momentum),
            static_cast<A>(eps),
            static_cast<A>(unbiased ? count / std::max(count - 1, 1.) : 1.),
            write<A>(running_mean),
            write<A>(running_var),
            write<A>(norm)};
  }

  // Ends the operator, whose kernel is queued.
  std::tuple<Tensor, Tensor> result() {
    if (!given_mean.is_contiguous()) torch::stable::copy_(given_mean, running_mean);
    if (!given_var.is_contiguous()) torch::stable::copy_(given_var, running_var);
    return {moments, norm};
  }
};

}  // namespace pyseg
