// vlad_aggregate for CUDA tensors.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "../torch/dispatch.h"
#include "../torch/vlad_checks.h"
#include "pyseg/vlad.cuh"

namespace pyseg {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::accelerator::DeviceGuard;
using vlad_cuda::BackwardWorkspace;
using vlad_cuda::ForwardWorkspace;
using vlad_cuda::Row;
using vlad_cuda::Sum;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// The largest grid of the launchers, a block per (b, 64 rows or 64 of F, 64 of K) or per 8 rows.
void check_grid(const VladShape& shape) {
  using vlad_cuda::tiles;
  const auto [B, N, F, K] = shape;
  const int64_t blocks = B * std::max({tiles(N), tiles(F), int64_t{1}}) * tiles(K);
  STD_TORCH_CHECK(std::max({blocks, B * N / 8, F * K / vlad_cuda::kThreads}) < 0x7fffffff,
                  "vlad_aggregate is too large for one launch: B = ", B, ", T * G = ", N,
                  ", F = ", F, ", K = ", K);
}

std::tuple<Tensor, Tensor, Tensor> vlad_aggregate_cuda(const Tensor& features,    // (B, T, G, F)
                                                       const Tensor& assignment,  // (B, T, G, K)
                                                       const Tensor& attention,   // (B, T, G)
                                                       const Tensor& centers,     // (F, K)
                                                       double eps) {
  const VladShape shape = check_vlad(features, assignment, attention, centers, eps);
  check_grid(shape);
  const DeviceGuard guard(features.get_device_index());
  const auto [B, N, F, K] = shape;
  const Tensor features_ = contiguous(features), assignment_ = contiguous(assignment);
  const Tensor attention_ = contiguous(attention), centers_ = contiguous(centers);
  const auto sums = accumulate_dtype(features.scalar_type());
  const Tensor output = new_empty(features_, {B, F, K});
  const Tensor mass = new_empty(features_, {B, K}, sums);
  const Tensor square_norm = new_empty(features_, {B, K}, sums);
  const Tensor rows = new_empty(features_, {B, N, 2}, sums);
  // Where values and sums are of one type, v is normalised in place.
  const bool in_place = features.scalar_type() == sums;
  const Tensor vlad = in_place ? output : new_empty(features_, {B, F, K}, sums);
  const Tensor square_sums = new_empty(features_, {B, vlad_cuda::tiles(F), K}, sums);
  const cudaStream_t stream = current_stream(features_);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Sum<T>;
    const VladInput<T> in{read<T>(features_), read<T>(assignment_), read<T>(attention_),
                          read<T>(centers_)};
    const VladOutput<T, A> out{write<T>(output), write<A>(mass), write<A>(square_norm)};
    const ForwardWorkspace<A> work{write<Row<A>>(rows), write<A>(vlad), write<A>(square_sums)};
    STD_CUDA_CHECK(launch_vlad_forward<T>(shape, in, eps, out, work, stream));
  };
  dispatch_floating<__half, __nv_bfloat16>(features.scalar_type(), "vlad_aggregate", run);
  return {output, mass, square_norm};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> vlad_aggregate_backward_cuda(
    const Tensor& grad,         // (B, F, K)
    const Tensor& features,     // (B, T, G, F)
    const Tensor& assignment,   // (B, T, G, K)
    const Tensor& attention,    // (B, T, G)
    const Tensor& centers,      // (F, K)
    const Tensor& output,       // (B, F, K)
    const Tensor& mass,         // (B, K)
    const Tensor& square_norm,  // (B, K)
    double eps, bool needs_features_grad) {
  const VladShape shape = check_vlad(features, assignment, attention, centers, eps);
  check_vlad_saved(shape, features, grad, output, mass, square_norm);
  check_grid(shape);
  const DeviceGuard guard(features.get_device_index());
  const auto [B, N, F, K] = shape;
  const int64_t frames = features.size(1), groups = features.size(2);
  const Tensor features_ = contiguous(features), assignment_ = contiguous(assignment);
  const Tensor attention_ = contiguous(attention), centers_ = contiguous(centers);
  const Tensor grad_ = contiguous(grad), output_ = contiguous(output);
  const Tensor mass_ = contiguous(mass), square_norm_ = contiguous(square_norm);
  const Tensor features_grad = needs_features_grad ? new_empty(features_, {B, frames, groups, F})
                                                   : new_empty(features_, {0});
  const Tensor assignment_grad = new_empty(features_, {B, frames, groups, K});
  const Tensor attention_grad = new_empty(features_, {B, frames, groups});
  const Tensor centers_grad = new_empty(features_, {F, K});
  const Tensor rows = new_empty(mass_, {B, N, 2});
  const Tensor columns = new_empty(mass_, {B, 3, K});
  const Tensor attention_sums = new_empty(mass_, {B, N});
  const cudaStream_t stream = current_stream(features_);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Sum<T>;
    const VladInput<T> in{read<T>(features_), read<T>(assignment_), read<T>(attention_),
                          read<T>(centers_)};
    const VladSaved<T, A> saved{read<T>(grad_), read<T>(output_), read<A>(mass_),
                                read<A>(square_norm_)};
    const VladGradient<T> out{needs_features_grad ? write<T>(features_grad) : nullptr,
                              write<T>(assignment_grad), write<T>(attention_grad)};
    const BackwardWorkspace<A> work{write<Row<A>>(rows), write<A>(columns),
                                    write<A>(attention_sums)};
    STD_CUDA_CHECK(
        launch_vlad_backward<T>(shape, in, saved, eps, out, write<T>(centers_grad), work, stream));
  };
  dispatch_floating<__half, __nv_bfloat16>(features.scalar_type(), "vlad_aggregate_backward", run);
  return {features_grad, assignment_grad, attention_grad, centers_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CUDA, m) {
  m.impl("vlad_aggregate", TORCH_BOX(&vlad_aggregate_cuda));
  m.impl("vlad_aggregate_backward", TORCH_BOX(&vlad_aggregate_backward_cuda));
}

}  // namespace pyseg
