// The checks of vlad_aggregate, the same for every device.
#pragma once

#include <limits>

#include "../include/pyseg/vlad_shape.h"
#include "checks.h"
#include "dispatch.h"

namespace pyseg {

inline VladShape check_vlad(const Tensor& features,    // (B, T, G, F)
                            const Tensor& assignment,  // (B, T, G, K)
                            const Tensor& attention,   // (B, T, G)
                            const Tensor& centers,     // (F, K)
                            double eps) {
  check_dimensions(features, "features", "(B, T, G, F)");
  check_dimensions(assignment, "assignment", "(B, T, G, K)");
  const int64_t B = features.size(0), T = features.size(1), G = features.size(2);
  const int64_t F = features.size(3), K = assignment.size(3);
  check_shape(assignment, "assignment", "(B, T, G, K)", {B, T, G, K});
  check_shape(attention, "attention", "(B, T, G)", {B, T, G});
  check_shape(centers, "centers", "(F, K)", {F, K});
  STD_TORCH_CHECK(K >= 1, "assignment must have at least 1 cluster, got shape ",
                  shape_text(assignment));
  const auto check_like_features = [&](const Tensor& tensor, const char* name) {
    check_dtype(tensor, name, features.scalar_type());
    check_device(tensor, name, features, "features");
  };
  check_like_features(assignment, "assignment");
  check_like_features(attention, "attention");
  check_like_features(centers, "centers");
  STD_TORCH_CHECK(eps >= std::numeric_limits<float>::min() && eps < 1.0 / 0.0,
                  "eps must be finite and at least ", std::numeric_limits<float>::min(), ", got ",
                  eps);
  return {B, T * G, F, K};
}

inline void check_vlad_saved(const VladShape& shape,
                             const Tensor& features,     // (B, T, G, F)
                             const Tensor& grad,         // (B, F, K)
                             const Tensor& output,       // (B, F, K)
                             const Tensor& mass,         // (B, K)
                             const Tensor& square_norm)  // (B, K)
{
  const auto check = [&](const Tensor& tensor, const char* name, auto dtype) {
    check_dtype(tensor, name, dtype);
    check_device(tensor, name, features, "features");
  };
  const auto [B, N, F, K] = shape;
  check_shape(grad, "grad", "(B, F, K)", {B, F, K});
  check_shape(output, "output", "(B, F, K)", {B, F, K});
  check_shape(mass, "mass", "(B, K)", {B, K});
  check_shape(square_norm, "square_norm", "(B, K)", {B, K});
  check(grad, "grad", features.scalar_type());
  check(output, "output", features.scalar_type());
  check(mass, "mass", accumulate_dtype(features.scalar_type()));
  check(square_norm, "square_norm", accumulate_dtype(features.scalar_type()));
}

}  // namespace pyseg
