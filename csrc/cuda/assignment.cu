// soft_assign and moments for CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../torch/dispatch.h"
#include "../torch/vlad_checks.h"
#include "../torch/vlad_tensors.h"
#include "device.h"
#include "pyseg/soft_assign.cuh"

namespace pyseg {
namespace {

using gpu::Sum;
using torch::stable::contiguous;
using torch::stable::empty_like;
using torch::stable::new_empty;
using torch::stable::accelerator::DeviceGuard;

Tensor soft_assign_cuda(const Tensor& assignment,                  // (B, T, G, K)
                        const Tensor& attention,                   // (B, T, G)
                        const std::optional<Tensor>& norm,         // (4, G, K)
                        const std::optional<Tensor>& row_weights,  // (B, T)
                        bool by_cluster) {
  const VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  const DeviceGuard guard(assignment.get_device_index());
  const Tensor assignment_ = contiguous(assignment), attention_ = contiguous(attention);
  const NormTensors norm_tensors(norm, row_weights);
  const Tensor weights = new_weights(assignment_, by_cluster);
  const gpu::Device device = current_device();
  const auto run = [&]<typename T>(std::type_identity<T>) {
    STD_CUDA_CHECK(launch_soft_assign<T>(
        shape, read<T>(assignment_), read<T>(attention_), norm_tensors.norm<Sum<T>>(),
        {write<T>(weights), by_cluster}, device, current_stream(assignment)));
  };
  dispatch_floating<__half, __nv_bfloat16>(assignment.scalar_type(), "soft_assign", run);
  return weights;
}

std::tuple<Tensor, Tensor, Tensor> soft_assign_backward_cuda(
    const Tensor& grad,                        // (B, T, G, K)
    const Tensor& assignment,                  // (B, T, G, K)
    const Tensor& attention,                   // (B, T, G)
    const std::optional<Tensor>& norm,         // (4, G, K)
    const std::optional<Tensor>& row_weights)  // (B, T)
{
  const VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  check_weights_grad(assignment, grad);
  const DeviceGuard guard(assignment.get_device_index());
  const WeightsGradient grad_(grad);
  const Tensor assignment_ = contiguous(assignment), attention_ = contiguous(attention);
  const NormTensors norm_tensors(norm, row_weights);
  const Tensor assignment_grad = empty_like(assignment_), attention_grad = empty_like(attention_);
  const Tensor norm_sums = norm_tensors.new_sums(shape, assignment_);
  const gpu::Device device = current_device();
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Sum<T>;
    const VladNorm<A> norm_ = norm_tensors.norm<A>();
    const Tensor workspace = new_workspace(
        assignment, soft_assign_backward_workspace<T>(shape, norm.has_value(), device));
    const VladGradient<T, A> out{nullptr, write<T>(assignment_grad), write<T>(attention_grad),
                                 nullptr, norm ? write<A>(norm_sums) : nullptr};
    STD_CUDA_CHECK(launch_soft_assign_backward<T>(
        shape, {read<T>(grad_.tensor), grad_.by_cluster}, read<T>(assignment_), read<T>(attention_),
        norm_, out, write<void>(workspace), device, current_stream(assignment)));
  };
  dispatch_floating<__half, __nv_bfloat16>(assignment.scalar_type(), "soft_assign_backward", run);
  return {assignment_grad, attention_grad, norm_sums};
}

Tensor moments_cuda(const Tensor& x,                           // (R, C)
                    const std::optional<Tensor>& row_weights)  // (R)
{
  const auto [rows, columns] = check_moments(x, row_weights);
  const DeviceGuard guard(x.get_device_index());
  const Tensor x_ = contiguous(x);
  const auto row_weights_ = contiguous_or_none(row_weights);
  const Tensor result = new_empty(x_, {2, columns}, accumulate_dtype(x.scalar_type()));
  if (columns == 0) return result;  // however many rows
  const auto run = [&, rows = rows, columns = columns]<typename T>(std::type_identity<T>) {
    using A = Sum<T>;
    const Tensor workspace = new_workspace(x, moments_workspace<T>(rows, columns));
    STD_CUDA_CHECK(launch_moments<T>(rows, columns, read<T>(x_),
                                     row_weights_ ? read<A>(*row_weights_) : nullptr,
                                     write<A>(result), write<void>(workspace), current_stream(x)));
  };
  dispatch_floating<__half, __nv_bfloat16>(x.scalar_type(), "moments", run);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CUDA, m) {
  m.impl("soft_assign", TORCH_BOX(&soft_assign_cuda));
  m.impl("soft_assign_backward", TORCH_BOX(&soft_assign_backward_cuda));
  m.impl("moments", TORCH_BOX(&moments_cuda));
}

}  // namespace pyseg
