// Calls pyseg's operator from C++ without Python: through torch's dispatcher, and then the kernel
// itself on plain arrays, as a program without torch would. Both must agree.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <optional>
#include <vector>

#include "pyseg/vlad.h"

using torch::stable::Tensor;

namespace {

// A float tensor with values between -1 and 1.
Tensor make(std::initializer_list<int64_t> sizes, float phase) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const Tensor tensor = torch::stable::empty(sizes, torch::headeronly::ScalarType::Float,
                                             torch::headeronly::Layout::Strided, cpu);
  float* data = tensor.mutable_data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) data[i] = std::sin(phase + static_cast<float>(i));
  return tensor;
}

}  // namespace

int main() {
  constexpr int64_t B = 2, T = 5, G = 2, F = 8, K = 4;
  constexpr double eps = 1e-12;
  const Tensor features = make({B, T, G, F}, 0.1f), assignment = make({B, T, G, K}, 0.2f);
  const Tensor attention = make({B, T, G}, 0.3f), centers = make({F, K}, 0.4f);

  // The arguments in the order of the schema; the results replace them.
  using torch::stable::detail::from;
  const std::optional<Tensor> none;  // no batch normalisation of the assignment
  std::array<StableIValue, 8> stack{from(features), from(assignment), from(attention),
                                    from(centers),  from(none),       from(none),
                                    from(eps),      from(false)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("pyseg::vlad_aggregate", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor output = torch::stable::detail::to<Tensor>(stack[0]);  // (B, F, K)
  for (int i : {1, 2}) torch::stable::detail::to<Tensor>(stack[i]);   // the stack owns no tensor

  std::vector<float> direct(B * F * K), mass(B * K), square_norm(B * K);
  const pyseg::VladShape shape{.batch = B, .rows = T * G, .groups = G, .width = F, .clusters = K};
  const pyseg::VladInput<float, float> in{.features = features.const_data_ptr<float>(),
                                          .assignment = assignment.const_data_ptr<float>(),
                                          .attention = attention.const_data_ptr<float>(),
                                          .centers = centers.const_data_ptr<float>(),
                                          .norm = {nullptr, nullptr}};
  const pyseg::VladOutput<float, float> out{direct.data(), mass.data(), square_norm.data()};
  pyseg::vlad_forward<float>(shape, in, eps, out, 0, B);

  const float* dispatched = output.const_data_ptr<float>();
  float difference = 0;
  for (int64_t i = 0; i < B * F * K; ++i) {
    difference = std::fmax(difference, std::fabs(direct[i] - dispatched[i]));
  }
  std::printf("vlad_aggregate: %lld values, first %.6f; kernel and operator differ by %.1e\n",
              static_cast<long long>(output.numel()), dispatched[0], difference);
  return output.numel() == B * F * K && difference < 1e-6f ? 0 : 1;
}
