// Every operator that pyseg registers. The kernels are in cpu/ and cuda/, the gradients, fakes and
// autocast rules in pyseg/ops/. The backward of an op takes what its forward returned.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyseg, m) {
  // Shapes are those of pyseg.ops.vlad_aggregate; mass and square_norm are (B, K), of the dtype in
  // which sums are kept. Without needs_features_grad the first gradient is an empty tensor.
  m.def(
      "vlad_aggregate(Tensor features, Tensor assignment, Tensor attention, Tensor centers, "
      "float eps=1e-12) -> (Tensor output, Tensor mass, Tensor square_norm)");
  m.def(
      "vlad_aggregate_backward(Tensor grad, Tensor features, Tensor assignment, Tensor attention, "
      "Tensor centers, Tensor output, Tensor mass, Tensor square_norm, float eps, "
      "bool needs_features_grad) -> (Tensor, Tensor, Tensor, Tensor)");
}
