// Inputs and outputs of vlad_aggregate and soft_assign as tensors: made contiguous and allocated
// the same way for every device, and passed to the kernels as pointers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../include/pyseg/vlad_shape.h"
#include "checks.h"
#include "dispatch.h"

namespace pyseg {

inline std::optional<Tensor> contiguous_or_none(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// The batch normalisation of an assignment.
struct NormTensors {
  std::optional<Tensor> values;       // (4, G, K)
  std::optional<Tensor> row_weights;  // (B, T)

  NormTensors(const std::optional<Tensor>& values, const std::optional<Tensor>& row_weights)
      : values(contiguous_or_none(values)), row_weights(contiguous_or_none(row_weights)) {}

  template <typename A>
  VladNorm<A> norm() const {
    return {values ? read<A>(*values) : nullptr, row_weights ? read<A>(*row_weights) : nullptr};
  }

  // (2, G, K), or (0) without norm.
  Tensor new_sums(const VladShape& shape, const Tensor& values_of_dtype) const {
    const auto sums = accumulate_dtype(values_of_dtype.scalar_type());
    return values
               ? torch::stable::new_empty(values_of_dtype, {2, shape.groups, shape.clusters}, sums)
               : torch::stable::new_empty(values_of_dtype, {0}, sums);
  }
};

// The result of soft_assign, (B, T, G, K), for the values of a contiguous assignment; with
// by_cluster a view of contiguous memory (B, T, K, G).
inline Tensor new_weights(const Tensor& assignment, bool by_cluster) {
  if (!by_cluster) return torch::stable::empty_like(assignment);
  const auto size = [&](int64_t i) { return assignment.size(i); };
  return torch::stable::transpose(
      torch::stable::new_empty(assignment, {size(0), size(1), size(3), size(2)}), 2, 3);
}

// The gradient of these weights, in whichever order it comes; copied if that is another one.
struct WeightsGradient {
  bool by_cluster;
  Tensor tensor;  // (B, T, G, K)

  explicit WeightsGradient(const Tensor& grad)
      : by_cluster(!grad.is_contiguous() && torch::stable::transpose(grad, 2, 3).is_contiguous()),
        tensor(by_cluster ? grad : torch::stable::contiguous(grad)) {}
};

struct VladInputTensors {
  Tensor features;    // (B, T, G, F)
  Tensor assignment;  // (B, T, G, K)
  Tensor attention;   // (B, T, G)
  Tensor centers;     // (F, K)
  NormTensors norm;

  VladInputTensors(const Tensor& features, const Tensor& assignment, const Tensor& attention,
                   const Tensor& centers, const std::optional<Tensor>& norm,
                   const std::optional<Tensor>& row_weights)
      : features(torch::stable::contiguous(features)),
        assignment(torch::stable::contiguous(assignment)),
        attention(torch::stable::contiguous(attention)),
        centers(torch::stable::contiguous(centers)),
        norm(norm, row_weights) {}

  template <typename T, typename A>
  VladInput<T, A> input() const {
    return {read<T>(features), read<T>(assignment), read<T>(attention), read<T>(centers),
            norm.norm<A>()};
  }
};

struct VladOutputTensors {
  Tensor output;       // (B, F, K)
  Tensor mass;         // (B, K)
  Tensor square_norm;  // (B, K)

  VladOutputTensors(const VladShape& shape, const Tensor& features)
      : output(torch::stable::new_empty(features, {shape.batch, shape.width, shape.clusters})),
        mass(torch::stable::new_empty(features, {shape.batch, shape.clusters},
                                      accumulate_dtype(features.scalar_type()))),
        square_norm(torch::stable::new_empty(mass, {shape.batch, shape.clusters})) {}

  template <typename T, typename A>
  VladOutput<T, A> pointers() const {
    return {write<T>(output), write<A>(mass), write<A>(square_norm)};
  }

  std::tuple<Tensor, Tensor, Tensor> result() const { return {output, mass, square_norm}; }
};

struct VladSavedTensors {
  Tensor grad;         // (B, F, K)
  Tensor output;       // (B, F, K)
  Tensor mass;         // (B, K)
  Tensor square_norm;  // (B, K)

  VladSavedTensors(const Tensor& grad, const Tensor& output, const Tensor& mass,
                   const Tensor& square_norm)
      : grad(torch::stable::contiguous(grad)),
        output(torch::stable::contiguous(output)),
        mass(torch::stable::contiguous(mass)),
        square_norm(torch::stable::contiguous(square_norm)) {}

  template <typename T, typename A>
  VladSaved<T, A> saved() const {
    return {read<T>(grad), read<T>(output), read<A>(mass), read<A>(square_norm)};
  }
};

struct VladGradientTensors {
  Tensor features;    // (B, T, G, F), or (0) where it is not needed
  Tensor assignment;  // (B, T, G, K)
  Tensor attention;   // (B, T, G)
  Tensor centers;     // (F, K)
  Tensor norm_sums;   // (2, G, K), or (0) without norm
  bool needs_features;
  bool has_norm;

  VladGradientTensors(const VladShape& shape, const VladInputTensors& in, bool needs_features)
      : features(needs_features ? torch::stable::empty_like(in.features)
                                : torch::stable::new_empty(in.features, {0})),
        assignment(torch::stable::empty_like(in.assignment)),
        attention(torch::stable::empty_like(in.attention)),
        centers(torch::stable::empty_like(in.centers)),
        norm_sums(in.norm.new_sums(shape, in.features)),
        needs_features(needs_features),
        has_norm(in.norm.values.has_value()) {}

  template <typename T, typename A>
  VladGradient<T, A> pointers() const {
    return {needs_features ? write<T>(features) : nullptr, write<T>(assignment),
            write<T>(attention), write<T>(centers), has_norm ? write<A>(norm_sums) : nullptr};
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> result() const {
    return {features, assignment, attention, centers, norm_sums};
  }
};

}  // namespace pyseg
