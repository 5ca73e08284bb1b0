// Every operator that pyseg registers. The kernels are in cpu/ and cuda/; gradients, fake kernels
// and autocast rules in pyseg/ops/. The backward of an op takes the outputs of its forward.
//
// norm is (4, G*K): mean, rstd, weight and bias of the assignment's batch normalisation, or none;
// row_weights is (B*T) or none, see include/pyseg/vlad_shape.h. Both, like every sum that an op
// returns, have the dtype in which sums over the values are kept. norm_sums is (2, G*K), an empty
// tensor without norm.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyseg, m) {
  // Shapes are those of pyseg.ops.vlad_aggregate; mass and square_norm are (B, K). Without
  // needs_features_grad the first gradient is an empty tensor. With allow_tf32 products of float32
  // may use TF32, like PyTorch's own matrix products on a GPU.
  m.def(
      "vlad_aggregate(Tensor features, Tensor assignment, Tensor attention, Tensor centers, "
      "Tensor? norm=None, Tensor? row_weights=None, float eps=1e-12, bool allow_tf32=False) "
      "-> (Tensor output, Tensor mass, Tensor square_norm)");
  m.def(
      "vlad_aggregate_backward(Tensor grad, Tensor features, Tensor assignment, Tensor attention, "
      "Tensor centers, Tensor? norm, Tensor? row_weights, Tensor output, Tensor mass, "
      "Tensor square_norm, float eps, bool needs_features_grad, bool allow_tf32=False) -> "
      "(Tensor features, Tensor assignment, Tensor attention, Tensor centers, Tensor norm_sums)");
  // Shapes are those of pyseg.ops.soft_assign. grad may have either order in memory.
  m.def(
      "soft_assign(Tensor assignment, Tensor attention, Tensor? norm=None, "
      "Tensor? row_weights=None, bool by_cluster=False) -> Tensor");
  m.def(
      "soft_assign_backward(Tensor grad, Tensor assignment, Tensor attention, Tensor? norm, "
      "Tensor? row_weights) -> (Tensor assignment, Tensor attention, Tensor norm_sums)");
  // x is (R, C), row_weights (R); the result is (2, C): mean and biased variance of every column.
  m.def("moments(Tensor x, Tensor? row_weights=None) -> Tensor");
  // The moments of x, (..., C), the norm made of them, (4, C), and running statistics moved towards
  // them; all vectors are (C), of the dtype of sums. See include/pyseg/batch_statistics.h.
  m.def(
      "batch_statistics_(Tensor x, Tensor weight, Tensor bias, Tensor? deferred_bias, "
      "Tensor(a!) running_mean, Tensor(b!) running_var, float momentum, float eps, bool unbiased) "
      "-> (Tensor moments, Tensor norm)");
  // frames is (..., N) of bytes, mask (...) of bools, dequantization (3, N) of the dtype of sums
  // over the result's; see include/pyseg/dequantize_shape.h.
  m.def(
      "dequantize(Tensor frames, Tensor? mask, Tensor? dequantization, ScalarType dtype) -> "
      "Tensor");
  // Shapes are those of pyseg.ops.rated_bce_with_logits; the correlation is its three tensors, or
  // none. loss is the mean over rows, in the dtype of sums. grad is its gradient (in float16 B
  // times that), an empty tensor without needs_grad; the backward scales it. The one with _ does so
  // in place, and neither reads nor writes grad if the scale is 1: autograd calls it where it needs
  // grad for the last time. The other gets the logits only where autograd must know that the result
  // depends on them.
  m.def(
      "rated_bce_with_logits(Tensor logits, Tensor offsets, Tensor classes, Tensor scores, "
      "Tensor? correlation_offsets, Tensor? correlation_columns, Tensor? correlation_values, "
      "float rated_weight, float unrated_weight, float absent_evidence, bool needs_grad) -> "
      "(Tensor loss, Tensor grad)");
  m.def(
      "rated_bce_with_logits_backward(Tensor grad_output, Tensor grad, Tensor? logits=None) -> "
      "Tensor");
  m.def("rated_bce_with_logits_backward_(Tensor grad_output, Tensor(a!) grad) -> ()");
}
