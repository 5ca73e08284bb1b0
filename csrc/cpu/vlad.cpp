// vlad_aggregate for CPU tensors: a thread takes whole videos.
#include "pyseg/vlad.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "../torch/dispatch.h"
#include "../torch/vlad_checks.h"

namespace pyseg {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::parallel_for;

std::tuple<Tensor, Tensor, Tensor> vlad_aggregate_cpu(const Tensor& features,    // (B, T, G, F)
                                                      const Tensor& assignment,  // (B, T, G, K)
                                                      const Tensor& attention,   // (B, T, G)
                                                      const Tensor& centers,     // (F, K)
                                                      double eps) {
  const VladShape shape = check_vlad(features, assignment, attention, centers, eps);
  const auto [B, N, F, K] = shape;
  const Tensor features_ = contiguous(features), assignment_ = contiguous(assignment);
  const Tensor attention_ = contiguous(attention), centers_ = contiguous(centers);
  const auto sums = accumulate_dtype(features.scalar_type());
  const Tensor output = new_empty(features_, {B, F, K});
  const Tensor mass = new_empty(features_, {B, K}, sums);
  const Tensor square_norm = new_empty(features_, {B, K}, sums);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    const VladInput<T> in{read<T>(features_), read<T>(assignment_), read<T>(attention_),
                          read<T>(centers_)};
    const VladOutput<T, Accumulate<T>> out{write<T>(output), write<Accumulate<T>>(mass),
                                           write<Accumulate<T>>(square_norm)};
    parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
      vlad_forward<T>(shape, in, eps, out, begin, end);
    });
  };
  dispatch_floating<Float16, BFloat16>(features.scalar_type(), "vlad_aggregate", run);
  return {output, mass, square_norm};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> vlad_aggregate_backward_cpu(
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
  const auto [B, N, F, K] = shape;
  const int64_t T = features.size(1), G = features.size(2);
  const Tensor features_ = contiguous(features), assignment_ = contiguous(assignment);
  const Tensor attention_ = contiguous(attention), centers_ = contiguous(centers);
  const Tensor grad_ = contiguous(grad), output_ = contiguous(output);
  const Tensor mass_ = contiguous(mass), square_norm_ = contiguous(square_norm);
  const Tensor features_grad =
      needs_features_grad ? new_empty(features_, {B, T, G, F}) : new_empty(features_, {0});
  const Tensor assignment_grad = new_empty(features_, {B, T, G, K});
  const Tensor attention_grad = new_empty(features_, {B, T, G});
  const Tensor centers_grad = new_empty(features_, {F, K});
  const Tensor columns = new_empty(mass_, {B, 2, K});
  const auto run = [&]<typename S>(std::type_identity<S>) {
    using A = Accumulate<S>;
    const VladInput<S> in{read<S>(features_), read<S>(assignment_), read<S>(attention_),
                          read<S>(centers_)};
    const VladSaved<S, A> saved{read<S>(grad_), read<S>(output_), read<A>(mass_),
                                read<A>(square_norm_)};
    const VladGradient<S> out{needs_features_grad ? write<S>(features_grad) : nullptr,
                              write<S>(assignment_grad), write<S>(attention_grad)};
    A* const workspace = write<A>(columns);
    parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
      vlad_backward<S>(shape, in, saved, eps, out, workspace, begin, end);
    });
    parallel_for(0, shape.width, 1, [&](int64_t begin, int64_t end) {
      vlad_backward_centers<S>(shape, saved, workspace, write<S>(centers_grad), begin, end);
    });
  };
  dispatch_floating<Float16, BFloat16>(features.scalar_type(), "vlad_aggregate_backward", run);
  return {features_grad, assignment_grad, attention_grad, centers_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CPU, m) {
  m.impl("vlad_aggregate", TORCH_BOX(&vlad_aggregate_cpu));
  m.impl("vlad_aggregate_backward", TORCH_BOX(&vlad_aggregate_backward_cpu));
}

}  // namespace pyseg
