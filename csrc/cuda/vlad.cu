// vlad_aggregate for CUDA tensors.
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

// For the paper's NeXtVLAD over 300 frames, an A100 must read features and assignment only once, in
// every type of the tensor cores.
constexpr VladShape kVideos{80, 2400, 8, 288, 112};
constexpr gpu::Device kA100{108, 163 * 1024, true};
static_assert(gpu::plan_forward<__half>(kVideos, true, kA100).f_slices == 1);
static_assert(gpu::plan_forward<__half>(kVideos, true, kA100).chunk == 32);
static_assert(gpu::plan_forward<float>(kVideos, true, kA100).f_slices == 1);
static_assert(gpu::plan_forward<float>(kVideos, true, kA100).chunk == 16);
// NetVLAD's sums need the registers of two multiprocessors; its assignment is read twice, not more.
constexpr VladShape kNetVlad{80, 300, 1, 1152, 64};
static_assert(gpu::plan_forward<__half>(kNetVlad, true, kA100).f_slices == 2);
static_assert(gpu::plan_forward<float>(kNetVlad, true, kA100).f_slices == 2);

std::tuple<Tensor, Tensor, Tensor> vlad_aggregate_cuda(
    const Tensor& features,                    // (B, T, G, F)
    const Tensor& assignment,                  // (B, T, G, K)
    const Tensor& attention,                   // (B, T, G)
    const Tensor& centers,                     // (F, K)
    const std::optional<Tensor>& norm,         // (4, G*K)
    const std::optional<Tensor>& row_weights,  // (B*T)
    double eps, bool allow_tf32) {
  const VladShape shape =
      check_vlad(features, assignment, attention, centers, norm, row_weights, eps);
  check_rows(shape);
  const DeviceGuard guard(features.get_device_index());
  const VladInputTensors inputs(features, assignment, attention, centers, norm, row_weights);
  const VladOutputTensors outputs(shape, inputs.features);
  const gpu::Device device = current_device();
  const auto run = [&]<typename T>(std::type_identity<T>) {
    const auto in = inputs.input<T, Sum<T>>();
    const int64_t bytes = vlad_forward_workspace<T>(shape, norm.has_value(), allow_tf32, device);
    const Tensor workspace = new_workspace(features, bytes);
    STD_CUDA_CHECK(launch_vlad_forward<T>(shape, in, eps, allow_tf32, device,
                                          outputs.pointers<T, Sum<T>>(), write<void>(workspace),
                                          current_stream(features)));
  };
  dispatch_floating<__half, __nv_bfloat16>(features.scalar_type(), "vlad_aggregate", run);
  return outputs.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CUDA, m) {
  m.impl("vlad_aggregate", TORCH_BOX(&vlad_aggregate_cuda));
}

}  // namespace pyseg
