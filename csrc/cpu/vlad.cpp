// vlad_aggregate for CPU tensors.
#include "pyseg/vlad.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../torch/dispatch.h"
#include "../torch/vlad_checks.h"
#include "../torch/vlad_tensors.h"
#include "norm_gradient.h"

namespace pyseg {
namespace {

using torch::stable::get_num_threads;
using torch::stable::parallel_for;

// Whether threads that take whole videos would idle for more than a quarter of the time.
bool too_few_videos(const VladShape& shape) {
  const int64_t threads = get_num_threads(), rounds = (shape.batch + threads - 1) / threads;
  return vlad_slices(shape) > 1 && 4 * rounds * threads > 5 * shape.batch;
}

std::tuple<Tensor, Tensor, Tensor> vlad_aggregate_cpu(
    const Tensor& features,                    // (B, T, G, F)
    const Tensor& assignment,                  // (B, T, G, K)
    const Tensor& attention,                   // (B, T, G)
    const Tensor& centers,                     // (F, K)
    const std::optional<Tensor>& norm,         // (4, G*K)
    const std::optional<Tensor>& row_weights,  // (B*T)
    double eps, bool /*allow_tf32*/) {
  const VladShape shape =
      check_vlad(features, assignment, attention, centers, norm, row_weights, eps);
  const VladInputTensors inputs(features, assignment, attention, centers, norm, row_weights);
  const VladOutputTensors outputs(shape, inputs.features);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Accumulate<T>;
    const auto in = inputs.input<T, A>();
    const auto out = outputs.pointers<T, A>();
    if (!too_few_videos(shape)) {
      parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
        vlad_forward<T>(shape, in, eps, out, begin, end);
      });
      return;
    }
    const Tensor workspace = new_tensor(outputs.mass, {vlad_forward_workspace<T>(shape)});
    A* const sums = write<A>(workspace);
    parallel_for(0, shape.batch * vlad_slices(shape), 1, [&](int64_t begin, int64_t end) {
      vlad_forward_slices<T>(shape, in, sums, begin, end);
    });
    parallel_for(0, shape.batch * vlad_columns<T>(shape), 1, [&](int64_t begin, int64_t end) {
      vlad_forward_finish<T>(shape, in, eps, out, sums, begin, end);
    });
  };
  dispatch_floating<Float16, BFloat16>(features.scalar_type(), "vlad_aggregate", run);
  return outputs.result();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vlad_aggregate_backward_cpu(
    const Tensor& grad,                        // (B, F, K)
    const Tensor& features,                    // (B, T, G, F)
    const Tensor& assignment,                  // (B, T, G, K)
    const Tensor& attention,                   // (B, T, G)
    const Tensor& centers,                     // (F, K)
    const std::optional<Tensor>& norm,         // (4, G*K)
    const std::optional<Tensor>& row_weights,  // (B*T)
    const Tensor& output,                      // (B, F, K)
    const Tensor& mass,                        // (B, K)
    const Tensor& square_norm,                 // (B, K)
    double eps, bool needs_features_grad, bool /*allow_tf32*/) {
  const VladShape shape =
      check_vlad(features, assignment, attention, centers, norm, row_weights, eps);
  check_vlad_saved(shape, features, grad, output, mass, square_norm);
  const VladInputTensors inputs(features, assignment, attention, centers, norm, row_weights);
  const VladSavedTensors saved_tensors(grad, output, mass, square_norm);
  const VladGradientTensors gradients(shape, inputs, needs_features_grad);
  const auto run = [&]<typename T>(std::type_identity<T>) {
    using A = Accumulate<T>;
    const auto in = inputs.input<T, A>();
    const auto saved = saved_tensors.saved<T, A>();
    const auto out = gradients.pointers<T, A>();
    const int64_t blocks = vlad_blocks(shape), tasks = blocks * vlad_slices(shape);
    const int64_t centers_size = vlad_centers_size<T>(shape);
    const int64_t norm_size = norm ? norm_sums_size<T>(shape) : 0;
    const Tensor workspace =
        new_tensor(saved_tensors.mass, {blocks * centers_size + tasks * norm_size});
    A* const centers_sums = write<A>(workspace);
    A* const norm_sums = norm ? centers_sums + blocks * centers_size : nullptr;
    parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      vlad_backward<T>(shape, in, saved, eps, out, centers_sums, norm_sums, begin, end);
    });
    parallel_for(0, shape.width, 16, [&](int64_t begin, int64_t end) {
      vlad_backward_centers<T>(shape, saved, centers_sums, out.centers, begin, end);
    });
    if (norm)
      complete_norm_gradient<T>(shape, in.assignment, in.norm, norm_sums, tasks, out.norm_sums,
                                out.assignment);
  };
  dispatch_floating<Float16, BFloat16>(features.scalar_type(), "vlad_aggregate_backward", run);
  return gradients.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyseg, CPU, m) {
  m.impl("vlad_aggregate", TORCH_BOX(&vlad_aggregate_cpu));
  m.impl("vlad_aggregate_backward", TORCH_BOX(&vlad_aggregate_backward_cpu));
}

}  // namespace pyseg
