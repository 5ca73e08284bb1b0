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
#include "memory.h"

namespace pyseg {

// The batch normalisation of an assignment.
struct NormTensors {
  std::optional<Tensor> values;       // (4, G*K)
  std::optional<Tensor> row_weights;  // (B*T)

  NormTensors(const std::optional<Tensor>& values, const std::optional<Tensor>& row_weights)
      : values(in_order(values)), row_weights(in_order(row_weights)) {}

  template <typename A>
  VladNorm<A> norm() const {
    return {values ? read<A>(*values) : nullptr, row_weights ? read<A>(*row_weights) : nullptr};
  }

  // (2, G*K), or (0) without norm.
  Tensor new_sums(const VladShape& shape, const Tensor& values_of_dtype) const {
    const auto sums = accumulate_dtype(values_of_dtype.scalar_type());
    return values ? new_tensor(values_of_dtype, {2, shape.groups * shape.clusters}, sums)
                  : new_tensor(values_of_dtype, {0}, sums);
  }
};

// The result of soft_assign, (B, T, G, K), for the values of a contiguous assignment; with
// by_cluster a view of contiguous memory (B, T, K, G).
inline Tensor new_weights(const Tensor& assignment, bool by_cluster) {
  if (!by_cluster) return new_tensor(assignment);
  const int64_t T = assignment.size(1), G = assignment.size(2), K = assignment.size(3);
  const int64_t strides[] = {T * K * G, K * G, 1, G};
  return new_strided(assignment, assignment.sizes(), strides, assignment.scalar_type());
}

// The gradient of these weights, in whichever order it comes; copied if that is another one.
struct WeightsGradient {
  bool by_cluster;
  Tensor tensor;  // (B, T, G, K)

  explicit WeightsGradient(const Tensor& grad)
      : by_cluster(!grad.is_contiguous() && torch::stable::transpose(grad, 2, 3).is_contiguous()),
        tensor(by_cluster ? grad : in_order(grad)) {}
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
      : features(in_order(features)),
        assignment(in_order(assignment)),
        attention(in_order(attention)),
        centers(in_order(centers)),
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
      : output(new_tensor(features, {shape.batch, shape.width, shape.clusters})),
        mass(new_tensor(features, {shape.batch, shape.clusters},
                        accumulate_dtype(features.scalar_type()))),
        square_norm(new_tensor(mass, {shape.batch, shape.clusters})) {}

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
      : grad(in_order(grad)),
        output(in_order(output)),
        mass(in_order(mass)),
        square_norm(in_order(square_norm)) {}

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
  Tensor norm_sums;   // (2, G*K), or (0) without norm
  bool needs_features;
  bool has_norm;

  VladGradientTensors(const VladShape& shape, const VladInputTensors& in, bool needs_features)
      : features(needs_features ? new_tensor(in.features) : new_tensor(in.features, {0})),
        assignment(new_tensor(in.assignment)),
        attention(new_tensor(in.attention)),
        centers(new_tensor(in.centers)),
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
