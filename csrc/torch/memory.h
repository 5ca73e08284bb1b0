// Tensors in order, and memory for results. The functions of torch/csrc/stable/ops.h look up their
// operator by name and box its arguments at every call, which takes longer than a small kernel.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "error.h"

namespace pyseg {

using torch::stable::Tensor;

inline Tensor in_order(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> in_order(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(in_order(*tensor)) : std::nullopt;
}

// Memory on the device of `like`.
inline Tensor new_strided(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                          const int64_t* strides, torch::headeronly::ScalarType dtype) {
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device,
      like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         torch::headeronly::ScalarType dtype) {
  std::array<int64_t, 64> strides;  // torch itself has no tensor of more dimensions
  PYSEG_CHECK(sizes.size() <= strides.size(), "expected at most 64 dimensions, found ",
              sizes.size());
  int64_t stride = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  return new_strided(like, sizes, strides.data(), dtype);
}

inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  return new_tensor(like, sizes, like.scalar_type());
}

// Of the shape of `like`, but contiguous.
inline Tensor new_tensor(const Tensor& like) { return new_tensor(like, like.sizes()); }

}  // namespace pyseg
