// soft_assign, moments and batch_statistics_ for CPU tensors.
#include "pyseg/assignment.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../torch/batch_statistics_tensors.h"
#include "../torch/dispatch.h"
#include "../torch/vlad_checks.h"
#include "../torch/vlad_tensors.h"
#include "norm_gradient.h"
#include "pyseg/moments.h"

namespace pyseg {
namespace {

using torch::stable::parallel_for;

Tensor soft_assign_cpu(const Tensor& assignment,                  // (B, T, G, K)
                       const Tensor& attention,                   // (B, T, G)
                       const std::optional<Tensor>& norm,         // (4, G*K)
                       const std::optional<Tensor>& row_weights,  // (B*T)
                       bool by_cluster) {
  const VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  const Tensor assignment_ = in_order(assignment), attention_ = in_order(attention);
  const NormTensors norm_tensors(norm, row_weights);
  const Tensor output = new_weights(assignment_, by_cluster);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    const auto norm_ = norm_tensors.norm<Accumulate<T>>();
    parallel_for(0, shape.batch * shape.rows, 64, [&](int64_t begin, int64_t end) {
      soft_assign<T>(shape, read<T>(assignment_), read<T>(attention_), norm_, by_cluster,
                     write<T>(output), begin, end);
    });
  };
  dispatch_floating<Float16, BFloat16>(assignment.scalar_type(), "soft_assign", run);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> soft_assign_backward_cpu(
    const Tensor& grad,                        // (B, T, G, K)
    const Tensor& assignment,                  // (B, T, G, K)
    const Tensor& attention,                   // (B, T, G)
    const std::optional<Tensor>& norm,         // (4, G*K)
    const std::optional<Tensor>& row_weights)  // (B*T)
{
  const VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  check_weights_grad(assignment, grad);
  const WeightsGradient grad_(grad);
  const Tensor assignment_ = in_order(assignment), attention_ = in_order(attention);
  const NormTensors norm_tensors(norm, row_weights);
  const Tensor assignment_grad = new_tensor(assignment_), attention_grad = new_tensor(attention_);
  const Tensor norm_sums = norm_tensors.new_sums(shape, assignment_);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Accumulate<T>;
    const auto norm_ = norm_tensors.norm<A>();
    const int64_t blocks = soft_assign_blocks(shape);
    const Tensor workspace = new_tensor(norm_sums, {norm ? blocks * norm_sums_size<T>(shape) : 0});
    A* const partial = write<A>(workspace);
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      soft_assign_backward<T>(shape, read<T>(grad_.tensor), grad_.by_cluster, read<T>(assignment_),
                              read<T>(attention_), norm_, write<T>(assignment_grad),
                              write<T>(attention_grad), partial, begin, end);
    });
    if (norm) {
      complete_norm_gradient<T>(shape, read<T>(assignment_), norm_, partial, blocks,
                                write<A>(norm_sums), write<T>(assignment_grad));
    }
  };
  dispatch_floating<Float16, BFloat16>(assignment.scalar_type(), "soft_assign_backward", run);
  return {assignment_grad, attention_grad, norm_sums};
}

// The moments of x, (rows, columns), into `result`, (2, columns).
template <typename T>
void take_moments(int64_t rows, int64_t columns, const T* x, const Accumulate<T>* row_weights,
                  const Tensor& result) {
  using A = Accumulate<T>;
  const Tensor workspace = new_tensor(result, {moments_workspace<T>(rows, columns)});
  A* const partial = write<A>(workspace);
  parallel_for(0, moments_blocks(rows), 1, [&](int64_t begin, int64_t end) {
    moments<T>(rows, columns, x, row_weights, partial, begin, end);
  });
  merge_moments<T>(rows, columns, x, row_weights, partial, write<A>(result));
}

Tensor moments_cpu(const Tensor& x,                           // (R, C)
                   const std::optional<Tensor>& row_weights)  // (R)
{
  const auto [rows, columns] = check_moments(x, row_weights);
  const Tensor x_ = in_order(x);
  const auto row_weights_ = in_order(row_weights);
  const Tensor result = new_tensor(x_, {2, columns}, accumulate_dtype(x.scalar_type()));
  if (columns == 0) return result;  // however many rows
  const auto run = [&, rows = rows, columns = columns]<typename T>(std::type_identity<T>) {
    using A = Accumulate<T>;
    const A* const weights = row_weights_ ? read<A>(*row_weights_) : nullptr;
    for (int64_t r = 0; r < rows && weights != nullptr; ++r) {
      PYSEG_CHECK(!(weights[r] < 0), "row_weights: expected none below 0, found ", weights[r],
                  " in row ", r);
    }
    take_moments<T>(rows, columns, read<T>(x_), weights, result);
  };
  dispatch_floating<Float16, BFloat16>(x.scalar_type(), "moments", run);
  return result;
}

std::tuple<Tensor, Tensor> batch_statistics_cpu(const Tensor& x,       // (..., C)
                                                const Tensor& weight,  // (C)
                                                const Tensor& bias,    // (C)
                                                const std::optional<Tensor>& deferred_bias,  // (C)
                                                const Tensor& running_mean,                  // (C)
                                                const Tensor& running_var,                   // (C)
                                                double momentum, double eps, bool unbiased) {
  BatchStatisticsTensors tensors(x, weight, bias, deferred_bias, running_mean, running_var);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    if (tensors.columns == 0) return;
    take_moments<T>(tensors.rows, tensors.columns, read<T>(tensors.x), nullptr, tensors.moments);
    const auto in = tensors.pointers<Accumulate<T>>(momentum, eps, unbiased);
    for (int64_t c = 0; c < in.columns; ++c) batch_statistics(in, c);
  };
  dispatch_floating<Float16, BFloat16>(x.scalar_type(), "batch_statistics_", run);
  return tensors.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CPU, m) {
  m.impl("soft_assign", TORCH_BOX(&soft_assign_cpu));
  m.impl("soft_assign_backward", TORCH_BOX(&soft_assign_backward_cpu));
  m.impl("moments", TORCH_BOX(&moments_cpu));
  m.impl("batch_statistics_", TORCH_BOX(&batch_statistics_cpu));
}

}  // namespace pyseg
