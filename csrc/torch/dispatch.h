// Dispatch from a dtype to a type, and pointers of that type.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <type_traits>

#include "error.h"

namespace pyseg {

// Calls function(std::type_identity<T>{}) with the T of `dtype`; the caller names the types of
// float16 and bfloat16, since the CPU and CUDA kernels each have their own.
template <typename Float16, typename BFloat16, typename Function>
void dispatch_floating(torch::headeronly::ScalarType dtype, const char* op,
                       const Function& function) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return function(std::type_identity<float>{});
    case ScalarType::Double:
      return function(std::type_identity<double>{});
    case ScalarType::Half:
      return function(std::type_identity<Float16>{});
    case ScalarType::BFloat16:
      return function(std::type_identity<BFloat16>{});
    default:
      fail(op, ": expected float32, float64, float16 or bfloat16, found ",
           torch::headeronly::toString(dtype));
  }
}

// A tensor's values as a kernel's type, which may differ from torch's for the same dtype.
template <typename T>
const T* read(const torch::stable::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* write(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// The dtype in which sums over values of `dtype` are kept.
inline torch::headeronly::ScalarType accumulate_dtype(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace pyseg
