// The last step of both backward ops for CPU tensors: norm_sums over the whole batch, and the
// gradient of the assignment that needs them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "pyseg/assignment.h"

namespace pyseg {

// Sums `partial`, the norm_sums of `tasks` tasks, into `norm_sums`, (2, G, K); with row weights it
// then completes the gradient of the assignment, (B, T * G, K), in place.
template <typename T>
void complete_norm_gradient(const VladShape& shape, const T* assignment,
                            const VladNorm<Accumulate<T>>& norm, const Accumulate<T>* partial,
                            int64_t tasks, Accumulate<T>* norm_sums, T* assignment_grad) {
  using A = Accumulate<T>;
  torch::stable::parallel_for(0, 2 * shape.groups, 1, [&](int64_t begin, int64_t end) {
    add_partial_sums<A>(partial, tasks, norm_sums_size<T>(shape), shape.clusters, A{1}, norm_sums,
                        begin, end);
  });
  if (norm.row_weights == nullptr) return;
  torch::stable::parallel_for(0, shape.batch * shape.rows, 64, [&](int64_t begin, int64_t end) {
    assignment_through_statistics<T>(shape, assignment, norm, norm_sums, assignment_grad, begin,
                                     end);
  });
}

}  // namespace pyseg
