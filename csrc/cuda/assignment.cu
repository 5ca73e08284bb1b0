// soft_assign, moments and batch_statistics_ for CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../torch/batch_statistics_tensors.h"
#include "../torch/dispatch.h"
#include "../torch/vlad_checks.h"
#include "../torch/vlad_tensors.h"
#include "device.h"
#include "pyseg/cuda/batch_statistics.cuh"
#include "pyseg/soft_assign.cuh"

namespace pyseg {
namespace {

using gpu::Sum;
using torch::stable::accelerator::DeviceGuard;

Tensor soft_assign_cuda(const Tensor& assignment,                  // (B, T, G, K)
                        const Tensor& attention,                   // (B, T, G)
                        const std::optional<Tensor>& norm,         // (4, G*K)
                        const std::optional<Tensor>& row_weights,  // (B*T)
                        bool by_cluster) {
  const VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  const DeviceGuard guard(assignment.get_device_index());
  const Tensor assignment_ = in_order(assignment), attention_ = in_order(attention);
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
    const std::optional<Tensor>& norm,         // (4, G*K)
    const std::optional<Tensor>& row_weights)  // (B*T)
{
  const VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  check_weights_grad(assignment, grad);
  const DeviceGuard guard(assignment.get_device_index());
  const WeightsGradient grad_(grad);
  const Tensor assignment_ = in_order(assignment), attention_ = in_order(attention);
  const NormTensors norm_tensors(norm, row_weights);
  const Tensor assignment_grad = new_tensor(assignment_), attention_grad = new_tensor(attention_);
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
  const Tensor x_ = in_order(x);
  const auto row_weights_ = in_order(row_weights);
  const Tensor result = new_tensor(x_, {2, columns}, accumulate_dtype(x.scalar_type()));
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

std::tuple<Tensor, Tensor> batch_statistics_cuda(const Tensor& x,       // (..., C)
                                                 const Tensor& weight,  // (C)
                                                 const Tensor& bias,    // (C)
                                                 const std::optional<Tensor>& deferred_bias,  // (C)
                                                 const Tensor& running_mean,                  // (C)
                                                 const Tensor& running_var,                   // (C)
                                                 double momentum, double eps, bool unbiased) {
  const DeviceGuard guard(x.get_device_index());
  BatchStatisticsTensors tensors(x, weight, bias, deferred_bias, running_mean, running_var);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Sum<T>;
    const int64_t rows = tensors.rows, columns = tensors.columns;
    if (columns == 0) return;
    const Tensor workspace = new_workspace(x, moments_workspace<T>(rows, columns));
    const cudaStream_t stream = current_stream(x);
    STD_CUDA_CHECK(launch_moments<T>(rows, columns, read<T>(tensors.x), nullptr,
                                     write<A>(tensors.moments), write<void>(workspace), stream));
    STD_CUDA_CHECK(launch_batch_statistics(tensors.pointers<A>(momentum, eps, unbiased), stream));
  };
  dispatch_floating<__half, __nv_bfloat16>(x.scalar_type(), "batch_statistics_", run);
  return tensors.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CUDA, m) {
  m.impl("soft_assign", TORCH_BOX(&soft_assign_cuda));
  m.impl("soft_assign_backward", TORCH_BOX(&soft_assign_backward_cuda));
  m.impl("moments", TORCH_BOX(&moments_cuda));
  m.impl("batch_statistics_", TORCH_BOX(&batch_statistics_cuda));
}

}  // namespace pyseg
