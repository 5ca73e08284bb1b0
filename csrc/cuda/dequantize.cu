// dequantize for CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../torch/dispatch.h"
#include "../torch/frame_tensors.h"
#include "device.h"
#include "pyseg/cuda/dequantize.cuh"

namespace pyseg {
namespace {

Tensor dequantize_cuda(const Tensor& frames,                         // (..., N)
                       const std::optional<Tensor>& mask,            // (...)
                       const std::optional<Tensor>& dequantization,  // (3, N)
                       torch::headeronly::ScalarType dtype) {
  const torch::stable::accelerator::DeviceGuard guard(frames.get_device_index());
  const FrameTensors tensors(frames, mask, dequantization, dtype);
  const Tensor values = new_tensor(frames, frames.sizes(), dtype);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    STD_CUDA_CHECK(launch_dequantize<T>(tensors.input<gpu::Sum<T>>(), write<T>(values),
                                        current_stream(frames)));
  };
  dispatch_floating<__half, __nv_bfloat16>(dtype, "dequantize", run);
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CUDA, m) { m.impl("dequantize", TORCH_BOX(&dequantize_cuda)); }

}  // namespace pyseg
