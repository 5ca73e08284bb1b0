// The gradient of vlad_aggregate for CUDA tensors; a separate file, to compile in parallel.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../torch/dispatch.h"
#include "../torch/vlad_checks.h"
#include "../torch/vlad_tensors.h"
#include "device.h"
#include "pyseg/vlad.cuh"

namespace pyseg {
namespace {

using gpu::Sum;
using torch::stable::accelerator::DeviceGuard;

// Into how many slices the features are cut, which shared memory holds one after the other: for the
// paper's NeXtVLAD over 300 frames only in TF32 on an A100, for its NetVLAD in all cases but 16
// bits on an H100.
constexpr VladShape kVideos{80, 2400, 8, 288, 112}, kNetVlad{80, 300, 1, 1152, 64};
constexpr gpu::Device kA100{108, 163 * 1024, true}, kH100{132, 227 * 1024, true};
static_assert(gpu::plan_backward<__half>(kVideos, true, kA100).slices == 1);
static_assert(gpu::plan_backward<float>(kVideos, true, kH100).slices == 1);
static_assert(gpu::plan_backward<float>(kVideos, true, kA100).slices == 2);
static_assert(gpu::plan_backward<__half>(kNetVlad, true, kH100).slices == 1);
static_assert(gpu::plan_backward<__half>(kNetVlad, true, kA100).slices == 2);
static_assert(gpu::plan_backward<float>(kNetVlad, true, kH100).slices == 2);
static_assert(gpu::plan_backward<float>(kNetVlad, true, kA100).slices == 3);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vlad_aggregate_backward_cuda(
    const Tensor& grad,                        // (B, F, K)
    const Tensor& features,                    // (B, T, G, F)
    const Tensor& assignment,                  // (B, T, G, K)
    const Tensor& attention,                   // (B, T, G)
    const Tensor& centers,                     // (F, K)
    const std::optional<Tensor>& norm,         // (4, G*K)
    const std::optional<Tensor>& row_weights,  // (B*T)
    const Tensor& output,                      // (B, F, K)
    const Tensor& mass,                        // (B, K)
    const Tensor& square_norm,                 // (B, K)
    double eps, bool needs_features_grad, bool allow_tf32) {
  const VladShape shape =
      check_vlad(features, assignment, attention, centers, norm, row_weights, eps);
  check_vlad_saved(shape, features, grad, output, mass, square_norm);
  check_rows(shape);
  const DeviceGuard guard(features.get_device_index());
  const VladInputTensors inputs(features, assignment, attention, centers, norm, row_weights);
  const VladSavedTensors saved(grad, output, mass, square_norm);
  const VladGradientTensors gradients(shape, inputs, needs_features_grad);
  const gpu::Device device = current_device();
  const auto run = [&]<typename T>(std::type_identity<T>) {
    const auto in = inputs.input<T, Sum<T>>();
    const int64_t bytes = vlad_backward_workspace<T>(shape, norm.has_value(), allow_tf32, device);
    const Tensor workspace = new_workspace(features, bytes);
    STD_CUDA_CHECK(launch_vlad_backward<T>(shape, in, saved.saved<T, Sum<T>>(), eps, allow_tf32,
                                           device, gradients.pointers<T, Sum<T>>(),
                                           write<void>(workspace), current_stream(features)));
  };
  dispatch_floating<__half, __nv_bfloat16>(features.scalar_type(), "vlad_aggregate_backward", run);
  return gradients.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CUDA, m) {
  m.impl("vlad_aggregate_backward", TORCH_BOX(&vlad_aggregate_backward_cuda));
}

}  // namespace pyseg
