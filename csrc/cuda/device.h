// Device, stream and workspace of the CUDA ops.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <limits>

#include "../torch/error.h"
#include "../torch/memory.h"
#include "pyseg/cuda/common.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {

using torch::stable::Tensor;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline gpu::Device current_device() {
  gpu::Device device;
  STD_CUDA_CHECK(gpu::current_device(device));
  return device;
}

// Workspace of a launch, on the device of `like`.
inline Tensor new_workspace(const Tensor& like, int64_t bytes) {
  return new_tensor(like, {bytes}, torch::headeronly::ScalarType::Byte);
}

inline void check_rows(const VladShape& shape) {
  PYSEG_CHECK(shape.rows <= std::numeric_limits<int>::max(),
              "vlad_aggregate takes fewer than 2^31 rows a video, got T * G = ", shape.rows);
}

}  // namespace pyseg
