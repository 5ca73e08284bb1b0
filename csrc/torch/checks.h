// Checks of tensor arguments. pyseg/ops/ checks what users pass; these keep a direct call of
// torch.ops.pyseg from reading beyond a tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "error.h"

namespace pyseg {

using torch::stable::Tensor;

inline std::string shape_text(std::initializer_list<int64_t> sizes) {
  std::string text = "(";
  for (const int64_t size : sizes) {
    text += std::to_string(size) + (sizes.size() == 1 ? ",)" : ", ");
  }
  if (sizes.size() == 1) return text;
  if (sizes.size() > 1) text.resize(text.size() - 2);
  return text + ")";
}

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + (tensor.dim() == 1 ? ",)" : ")");
}

// Checks that `tensor` has as many dimensions as `layout`, such as "(F, K)", has names.
inline void check_dimensions(const Tensor& tensor, const char* name, const char* layout) {
  int64_t dimensions = 1;
  for (const char* c = layout; *c != 0; ++c) dimensions += *c == ',';
  PYSEG_CHECK(tensor.dim() == dimensions, name, ": expected shape ", layout, ", found ",
              shape_text(tensor));
}

inline void check_shape(const Tensor& tensor, const char* name, const char* layout,
                        std::initializer_list<int64_t> sizes) {
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (const int64_t size : sizes) same = same && tensor.size(i++) == size;
  PYSEG_CHECK(same, name, ": expected shape ", layout, " = ", shape_text(sizes), ", found ",
              shape_text(tensor));
}

inline void check_dtype(const Tensor& tensor, const char* name,
                        torch::headeronly::ScalarType dtype) {
  PYSEG_CHECK(tensor.scalar_type() == dtype, name, ": expected ",
              torch::headeronly::toString(dtype), ", found ",
              torch::headeronly::toString(tensor.scalar_type()));
}

// Checks that `tensor` is on the device of `other`.
inline void check_device(const Tensor& tensor, const char* name, const Tensor& other,
                         const char* other_name) {
  PYSEG_CHECK(tensor.device() == other.device(), name, ": expected the device of ", other_name,
              ", found another");
}

}  // namespace pyseg
