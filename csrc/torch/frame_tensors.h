// The inputs of dequantize as tensors: checked, and passed to the kernels as pointers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../include/pyseg/dequantize_shape.h"
#include "checks.h"
#include "dispatch.h"
#include "memory.h"

namespace pyseg {

// Whether the rows of (..., N) are equally far apart and their bytes adjacent, as in a slice of
// columns; then `stride` becomes that distance.
inline bool has_rows(const Tensor& frames, int64_t& stride) {
  const int64_t last = frames.dim() - 1;
  stride = frames.size(last);
  if (frames.stride(last) != 1) return false;
  int64_t rows = 1;
  for (int64_t i = last - 1; i >= 0; --i) {
    if (frames.size(i) == 1) continue;
    if (rows == 1) stride = frames.stride(i);
    if (frames.stride(i) != rows * stride) return false;
    rows *= frames.size(i);
  }
  return true;
}

struct FrameTensors {
  Tensor frames;                         // (..., N)
  std::optional<Tensor> mask;            // (...)
  std::optional<Tensor> dequantization;  // (3, N)
  int64_t stride;

  FrameTensors(const Tensor& given, const std::optional<Tensor>& mask_,
               const std::optional<Tensor>& dequantization_, torch::headeronly::ScalarType dtype)
      : frames(given) {
    using torch::headeronly::ScalarType;
    PYSEG_CHECK(given.dim() > 0, "frames: expected shape (..., N), found ()");
    check_dtype(given, "frames", ScalarType::Byte);
    const int64_t width = given.size(given.dim() - 1);
    if (mask_) {
      check_dtype(*mask_, "mask", ScalarType::Bool);
      check_device(*mask_, "mask", given, "frames");
      bool same = mask_->dim() == given.dim() - 1;
      for (int64_t i = 0; same && i < mask_->dim(); ++i) same = mask_->size(i) == given.size(i);
      PYSEG_CHECK(same, "mask: expected shape (...) to fit frames ", shape_text(given), ", found ",
                  shape_text(*mask_));
      mask = in_order(mask_);
    }
    if (dequantization_) {
      check_shape(*dequantization_, "dequantization", "(3, N)", {3, width});
      check_dtype(*dequantization_, "dequantization", accumulate_dtype(dtype));
      check_device(*dequantization_, "dequantization", given, "frames");
      dequantization = in_order(dequantization_);
    }
    if (!has_rows(given, stride)) {
      frames = torch::stable::contiguous(given);
      stride = width;
    }
  }

  template <typename A>
  StoredFrames<A> input() const {
    const int64_t width = frames.size(frames.dim() - 1);
    return {width == 0 ? 0 : frames.numel() / width,
            width,
            read<uint8_t>(frames),
            stride,
            mask ? read<bool>(*mask) : nullptr,
            dequantization ? read<A>(*dequantization) : nullptr};
  }
};

}  // namespace pyseg
