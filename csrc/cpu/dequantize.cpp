// dequantize for CPU tensors.
#include "pyseg/dequantize.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "../torch/dispatch.h"
#include "../torch/frame_tensors.h"

namespace pyseg {
namespace {

Tensor dequantize_cpu(const Tensor& frames,                         // (..., N)
                      const std::optional<Tensor>& mask,            // (...)
                      const std::optional<Tensor>& dequantization,  // (3, N)
                      torch::headeronly::ScalarType dtype) {
  const FrameTensors tensors(frames, mask, dequantization, dtype);
  const Tensor values = new_tensor(frames, frames.sizes(), dtype);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    const auto in = tensors.input<Accumulate<T>>();
    const int64_t grain = (1 << 15) / std::max<int64_t>(in.width, 1) + 1;  // as torch's own
    torch::stable::parallel_for(0, in.rows, grain, [&](int64_t begin, int64_t end) {
      pyseg::dequantize<T>(in, begin, end, write<T>(values));
    });
  };
  dispatch_floating<Float16, BFloat16>(dtype, "dequantize", run);
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CPU, m) { m.impl("dequantize", TORCH_BOX(&dequantize_cpu)); }

}  // namespace pyseg
