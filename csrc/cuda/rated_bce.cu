// rated_bce_with_logits for CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../torch/dispatch.h"
#include "../torch/rated_bce_checks.h"
#include "../torch/rated_bce_tensors.h"
#include "device.h"
#include "pyseg/rated_bce.cuh"

namespace pyseg {
namespace {

using gpu::Sum;
using torch::stable::accelerator::DeviceGuard;

std::tuple<Tensor, Tensor> rated_bce_with_logits_cuda(
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
  const DeviceGuard guard(logits.get_device_index());
  const RatedBceTensors tensors(logits, offsets, classes, scores, correlation_offsets,
                                correlation_columns, correlation_values, needs_grad);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Sum<T>;
    const auto in = tensors.input<T, A>(rated_weight, unrated_weight, absent_evidence);
    STD_CUDA_CHECK(launch_rated_bce<T>(in, write<A>(tensors.loss), tensors.gradient<T>(),
                                       write<A>(tensors.row_loss), current_stream(logits)));
  };
  dispatch_floating<__half, __nv_bfloat16>(logits.scalar_type(), "rated_bce_with_logits", run);
  return tensors.result();
}

void scale(const Tensor& grad_output, const Tensor& grad, const Tensor& result) {
  const auto run = [&]<typename T>(std::type_identity<T>) {
    STD_CUDA_CHECK(launch_rated_bce_backward<T>(read<Sum<T>>(grad_output), read<T>(grad),
                                                grad.size(0), grad.size(1), write<T>(result),
                                                current_stream(grad)));
  };
  dispatch_floating<__half, __nv_bfloat16>(grad.scalar_type(), "rated_bce_with_logits_backward",
                                           run);
}

Tensor rated_bce_with_logits_backward_cuda(const Tensor& grad_output,  // ()
                                           const Tensor& grad,         // (B, C)
                                           const std::optional<Tensor>& /*logits*/) {
  check_rated_bce_backward(grad_output, grad);
  const DeviceGuard guard(grad.get_device_index());
  const Tensor grad_ = in_order(grad), result = new_tensor(grad_);
  scale(grad_output, grad_, result);
  return result;
}

void rated_bce_with_logits_backward_in_place_cuda(const Tensor& grad_output,  // ()
                                                  const Tensor& grad)         // (B, C)
{
  check_rated_bce_backward(grad_output, grad);
  const DeviceGuard guard(grad.get_device_index());
  const Tensor grad_ = in_order(grad);  // where autograd calls this, grad itself
  scale(grad_output, grad_, grad_);
  if (!grad.is_contiguous()) torch::stable::copy_(const_cast<Tensor&>(grad), grad_);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CUDA, m) {
  m.impl("rated_bce_with_logits", TORCH_BOX(&rated_bce_with_logits_cuda));
  m.impl("rated_bce_with_logits_backward", TORCH_BOX(&rated_bce_with_logits_backward_cuda));
  m.impl("rated_bce_with_logits_backward_",
         TORCH_BOX(&rated_bce_with_logits_backward_in_place_cuda));
}

}  // namespace pyseg
