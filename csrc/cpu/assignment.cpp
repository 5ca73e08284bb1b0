// soft_assign and moments for CPU tensors.
#include "pyseg/assignment.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../torch/dispatch.h"
#include "../torch/vlad_checks.h"
#include "../torch/vlad_tensors.h"
#include "norm_gradient.h"
#include "pyseg/moments.h"

namespace pyseg {
namespace {

using torch::stable::contiguous;
using torch::stable::empty_like;
using torch::stable::new_empty;
using torch::stable::parallel_for;

Tensor soft_assign_cpu(const Tensor& assignment,                  // (B, T, G, K)
                       const Tensor& attention,                   // (B, T, G)
                       const std::optional<Tensor>& norm,         // (4, G, K)
                       const std::optional<Tensor>& row_weights,  // (B, T)
                       bool by_cluster) {
  const VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  const Tensor assignment_ = contiguous(assignment), attention_ = contiguous(attention);
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
    const std::optional<Tensor>& norm,         // (4, G, K)
    const std::optional<Tensor>& row_weights)  // (B, T)
{
  const VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  check_weights_grad(assignment, grad);
  const WeightsGradient grad_(grad);
  const Tensor assignment_ = contiguous(assignment), attention_ = contiguous(attention);
  const NormTensors norm_tensors(norm, row_weights);
  const Tensor assignment_grad = empty_like(assignment_), attention_grad = empty_like(attention_);
  const Tensor norm_sums = norm_tensors.new_sums(shape, assignment_);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Accumulate<T>;
    const auto norm_ = norm_tensors.norm<A>();
    const int64_t blocks = soft_assign_blocks(shape);
    const Tensor workspace = new_empty(norm_sums, {norm ? blocks * norm_sums_size<T>(shape) : 0});
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

Tensor moments_cpu(const Tensor& x,                           // (R, C)
                   const std::optional<Tensor>& row_weights)  // (R)
{
  const auto [rows, columns] = check_moments(x, row_weights);
  const Tensor x_ = contiguous(x);
  const auto row_weights_ = contiguous_or_none(row_weights);
  const Tensor result = new_empty(x_, {2, columns}, accumulate_dtype(x.scalar_type()));
  if (columns == 0) return result;  // however many rows
  const auto run = [&, rows = rows, columns = columns]<typename T>(std::type_identity<T>) {
    using A = Accumulate<T>;
    const A* const weights = row_weights_ ? read<A>(*row_weights_) : nullptr;
    for (int64_t r = 0; r < rows && weights != nullptr; ++r) {
      PYSEG_CHECK(!(weights[r] < 0), "row_weights: expected none below 0, found ", weights[r],
                  " in row ", r);
    }
    const Tensor workspace = new_empty(result, {moments_workspace<T>(rows, columns)});
    A* const partial = write<A>(workspace);
    parallel_for(0, moments_blocks(rows), 1, [&](int64_t begin, int64_t end) {
      moments<T>(rows, columns, read<T>(x_), weights, partial, begin, end);
    });
    merge_moments<T>(rows, columns, read<T>(x_), weights, partial, write<A>(result));
  };
  dispatch_floating<Float16, BFloat16>(x.scalar_type(), "moments", run);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CPU, m) {
  m.impl("soft_assign", TORCH_BOX(&soft_assign_cpu));
  m.impl("soft_assign_backward", TORCH_BOX(&soft_assign_backward_cpu));
  m.impl("moments", TORCH_BOX(&moments_cpu));
}

}  // namespace pyseg
