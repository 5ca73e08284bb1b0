// Every operator that pyseg registers. The kernels are in cpu/ and cuda/, the gradients, fakes and
// autocast rules in pyseg/ops/. The backward of an op takes what its forward returned.
//
// norm is (4, G, K): mean, rstd, weight and bias of the assignment's batch normalisation, or none;
// row_weights is (B, T) or none, see include/pyseg/vlad_shape.h. Both, like every sum that an op
// returns, are of the dtype in which sums over the values are kept. norm_sums is (2, G, K), an
// empty tensor without norm.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyseg, m) {
  // Shapes are those of pyseg.ops.vlad_aggregate; mass and square_norm are (B, K). Without
  // needs_features_grad the first gradient is an empty tensor. With allow_tf32 the products of
  // float32 may be in TF32, as PyTorch's own matrix products on a GPU where it is allowed.
  m.def(
      "vlad_aggregate(Tensor features, Tensor assignment, Tensor attention, Tensor centers, "
      "Tensor? norm=None, Tensor? row_weights=None, float eps=1e-12, bool allow_tf32=False) "
      "-> (Tensor output, Tensor mass, Tensor square_norm)");
  m.def(
      "vlad_aggregate_backward(Tensor grad, Tensor features, Tensor assignment, Tensor attention, "
      "Tensor centers, Tensor? norm, Tensor? row_weights, Tensor output, Tensor mass, "
      "Tensor square_norm, float eps, bool needs_features_grad, bool allow_tf32=False) -> "
      "(Tensor features, Tensor assignment, Tensor attention, Tensor centers, Tensor norm_sums)");
  // Shapes are those of pyseg.ops.soft_assign.
  m.def(
      "soft_assign(Tensor assignment, Tensor attention, Tensor? norm=None, "
      "Tensor? row_weights=None) -> Tensor");
  m.def(
      "soft_assign_backward(Tensor grad, Tensor assignment, Tensor attention, Tensor? norm, "
      "Tensor? row_weights) -> (Tensor assignment, Tensor attention, Tensor norm_sums)");
  // x is (R, C), row_weights (R); the result is (2, C): mean and biased variance of every column.
  m.def("moments(Tensor x, Tensor? row_weights=None) -> Tensor");
  // Shapes are those of pyseg.ops.rated_bce_with_logits; the correlation is its three tensors, or
  // none. loss is the mean over rows, of the dtype in which sums are kept; grad is that of the
  // logits for it (in float16 B times that), an empty tensor without needs_grad, and the backward
  // multiplies it; it is given the logits where autograd is to know that the result depends on
  // them.
  m.def(
      "rated_bce_with_logits(Tensor logits, Tensor offsets, Tensor classes, Tensor scores, "
      "Tensor? correlation_offsets, Tensor? correlation_columns, Tensor? correlation_values, "
      "float rated_weight, float unrated_weight, float absent_evidence, bool needs_grad) -> "
      "(Tensor loss, Tensor grad)");
  m.def(
      "rated_bce_with_logits_backward(Tensor grad_output, Tensor grad, Tensor? logits=None) -> "
      "Tensor");
  // What pyseg.metrics.TopKPerClass keeps, see include/pyseg/top_k.h: keys is (C, room) uint64, of
  // which each class has counts (C) int64, and thresholds (C) uint64 are what keys must be below.
  // Adds the scores (S, C) of ids (S) uint32 where candidates (S, C) bool says so, and cuts classes
  // that are full; there is room for all scores, or for k + 64 keys. The result is whether no score
  // is a NaN; otherwise nothing was added.
  m.def(
      "top_k_update(Tensor scores, Tensor ids, Tensor? candidates, int k, Tensor(a!) thresholds, "
      "Tensor(b!) keys, Tensor(c!) counts) -> bool");
  // Leaves the best k keys, and maybe a quarter of the rest of the room besides, of each class that
  // has more than k and no room for `wanted` more.
  m.def(
      "top_k_cut(int k, int wanted, Tensor(a!) thresholds, Tensor(b!) keys, Tensor(c!) counts) -> "
      "()");
}
