// The checks of vlad_aggregate, soft_assign and moments, the same for every device.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "../include/pyseg/vlad_shape.h"
#include "checks.h"
#include "dispatch.h"

namespace pyseg {

// Checks that `tensor` has the dtype of sums over `values`, and is on the same device.
inline void check_sums(const Tensor& tensor, const char* name, const Tensor& values,
                       const char* values_name) {
  check_dtype(tensor, name, accumulate_dtype(values.scalar_type()));
  check_device(tensor, name, values, values_name);
}

inline void check_norm(const Tensor& assignment,                  // (B, T, G, K)
                       const std::optional<Tensor>& norm,         // (4, G*K)
                       const std::optional<Tensor>& row_weights)  // (B*T)
{
  const int64_t B = assignment.size(0), T = assignment.size(1);
  const int64_t G = assignment.size(2), K = assignment.size(3);
  if (norm) {
    check_shape(*norm, "norm", "(4, G*K)", {4, G * K});
    check_sums(*norm, "norm", assignment, "assignment");
  }
  if (row_weights) {
    PYSEG_CHECK(norm.has_value(), "row_weights: expected None without norm, found a tensor");
    check_shape(*row_weights, "row_weights", "(B*T,)", {B * T});
    check_sums(*row_weights, "row_weights", assignment, "assignment");
  }
}

inline VladShape check_soft_assign(const Tensor& assignment,                  // (B, T, G, K)
                                   const Tensor& attention,                   // (B, T, G)
                                   const std::optional<Tensor>& norm,         // (4, G*K)
                                   const std::optional<Tensor>& row_weights)  // (B*T)
{
  check_dimensions(assignment, "assignment", "(B, T, G, K)");
  const int64_t B = assignment.size(0), T = assignment.size(1);
  const int64_t G = assignment.size(2), K = assignment.size(3);
  check_shape(attention, "attention", "(B, T, G)", {B, T, G});
  PYSEG_CHECK(K >= 1, "assignment: expected at least 1 cluster, found shape ",
              shape_text(assignment));
  check_dtype(attention, "attention", assignment.scalar_type());
  check_device(attention, "attention", assignment, "assignment");
  check_norm(assignment, norm, row_weights);
  return {B, T * G, G, 0, K};
}

inline VladShape check_vlad(const Tensor& features,                    // (B, T, G, F)
                            const Tensor& assignment,                  // (B, T, G, K)
                            const Tensor& attention,                   // (B, T, G)
                            const Tensor& centers,                     // (F, K)
                            const std::optional<Tensor>& norm,         // (4, G*K)
                            const std::optional<Tensor>& row_weights,  // (B*T)
                            double eps) {
  check_dimensions(features, "features", "(B, T, G, F)");
  check_dimensions(assignment, "assignment", "(B, T, G, K)");
  const int64_t B = features.size(0), T = features.size(1), G = features.size(2);
  const int64_t F = features.size(3), K = assignment.size(3);
  check_shape(assignment, "assignment", "(B, T, G, K)", {B, T, G, K});
  check_shape(centers, "centers", "(F, K)", {F, K});
  for (const auto& [tensor, name] :
       {std::pair{&assignment, "assignment"}, std::pair{&centers, "centers"}}) {
    check_dtype(*tensor, name, features.scalar_type());
    check_device(*tensor, name, features, "features");
  }
  VladShape shape = check_soft_assign(assignment, attention, norm, row_weights);
  shape.width = F;
  PYSEG_CHECK(eps >= std::numeric_limits<float>::min() && std::isfinite(eps),
              "eps: expected a finite number of at least ", std::numeric_limits<float>::min(),
              ", found ", eps);
  return shape;
}

inline void check_vlad_saved(const VladShape& shape,
                             const Tensor& features,     // (B, T, G, F)
                             const Tensor& grad,         // (B, F, K)
                             const Tensor& output,       // (B, F, K)
                             const Tensor& mass,         // (B, K)
                             const Tensor& square_norm)  // (B, K)
{
  const auto [B, N, G, F, K] = shape;
  check_shape(grad, "grad", "(B, F, K)", {B, F, K});
  check_shape(output, "output", "(B, F, K)", {B, F, K});
  check_shape(mass, "mass", "(B, K)", {B, K});
  check_shape(square_norm, "square_norm", "(B, K)", {B, K});
  for (const auto& [tensor, name] : {std::pair{&grad, "grad"}, std::pair{&output, "output"}}) {
    check_dtype(*tensor, name, features.scalar_type());
    check_device(*tensor, name, features, "features");
  }
  check_sums(mass, "mass", features, "features");
  check_sums(square_norm, "square_norm", features, "features");
}

// `grad` is the gradient of soft_assign's result.
inline void check_weights_grad(const Tensor& assignment,  // (B, T, G, K)
                               const Tensor& grad)        // (B, T, G, K)
{
  check_shape(grad, "grad", "(B, T, G, K)",
              {assignment.size(0), assignment.size(1), assignment.size(2), assignment.size(3)});
  check_dtype(grad, "grad", assignment.scalar_type());
  check_device(grad, "grad", assignment, "assignment");
}

// Returns (R, C).
inline std::pair<int64_t, int64_t> check_moments(const Tensor& x,  // (R, C)
                                                 const std::optional<Tensor>& row_weights)  // (R)
{
  check_dimensions(x, "x", "(R, C)");
  if (row_weights) {
    check_shape(*row_weights, "row_weights", "(R,)", {x.size(0)});
    check_sums(*row_weights, "row_weights", x, "x");
  }
  return {x.size(0), x.size(1)};
}

}  // namespace pyseg
