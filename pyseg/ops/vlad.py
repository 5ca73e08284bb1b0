"""Soft-assignment aggregation of NetVLAD and NeXtVLAD, see :func:`vlad_aggregate`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyseg import _ext
from pyseg.ops._dispatch import (
    allow_tf32,
    check_alike,
    check_layout,
    has_kernel,
    in_autocast,
    refuse_double_backward,
    refuse_gradient,
    register_autocast,
    register_autograd,
    register_fake,
    sum_dtype,
    to_autocast_dtype,
)
from pyseg.ops.assignment import (
    AssignmentNorm,
    check_norm,
    fake_norm_sums,
    norm_gradient,
    normalize,
    pack_norm,
)

_SMALLEST_EPS = torch.finfo(torch.float32).tiny


def vlad_aggregate(
    features: Tensor,
    assignment: Tensor,
    attention: Tensor,
    centers: Tensor,
    *,
    norm: AssignmentNorm | None = None,
    eps: float = 1e-12,
) -> Tensor:
    r"""Returns the intra-normalised VLAD descriptor of every video, fused into one pass.

    .. math::
        v_{fk} = \sum_{t,g} \alpha_{tg} \operatorname{softmax}_k(z_{tg})_k \, (x_{tgf} - c_{fk}),
        \qquad y_{fk} = v_{fk} / \sqrt{\max(\textstyle\sum_f v_{fk}^2, \epsilon)}

    With one group and an attention of ones this is NetVLAD; with G groups and a sigmoid attention
    it is NeXtVLAD. The normalisation is TensorFlow's ``l2_normalize``, and its gradient is exact
    in the clamped region too: a column whose squared norm is below ``eps`` is only scaled.

    Compiled kernels serve CPU and CUDA tensors and accumulate in float32 (float64 for float64
    input); the softmax is recomputed in the backward pass, so nothing of size (B, T, G, K) is
    kept. On a GPU float32 takes TF32 where PyTorch's matrix products may
    (``torch.set_float32_matmul_precision``). Where no kernel is loaded (``python -m pyseg.info``
    says why) :func:`vlad_aggregate_reference` runs instead. The result is deterministic: the same
    input gives the same bits on one device, whatever the number of threads.

    Under autocast the op is one of the matrix products: inputs are cast to autocast's dtype
    (float64 is left alone, as everywhere in autocast), sums stay in float32. Gradients can be
    taken once, of all inputs but ``norm.row_weights``; second derivatives and forward-mode ones are
    refused, use :func:`vlad_aggregate_reference` for them. In float16 the gradient of ``attention``
    saturates at the largest finite value: a video without any attended frame has zero columns,
    whose gradient of the order of ``eps ** -0.5`` must not turn into NaN when the mask multiplies
    it by 0.

    Args:
        features: (B, T, G, F) frame features in G groups; float32, float64, float16 or bfloat16.
        assignment: (B, T, G, K) scores of the K clusters, before the softmax over K.
        attention: (B, T, G) weight of every group of every frame, already 0 on padding.
        centers: (F, K) cluster centres, a column each.
        norm: batch normalisation of the assignment before the softmax; its normalised values are
            never written.
        eps: lower bound of a column's squared norm, at least the smallest normal float32.

    Returns:
        (B, F, K) descriptors of the dtype of ``features``, contiguous; each column ``[b, :, k]``
        has length 1, or 0 where nothing was aggregated.

    Raises:
        TypeError: an argument is not a tensor, or the dtypes differ or are not floating.
        ValueError: shapes or devices do not fit together, or ``eps`` is too small.

    References:
        Arandjelovic et al., NetVLAD, CVPR 2016, equation (4). Lin et al., NeXtVLAD, ECCV
        Workshops 2018, equations (2) to (5).

    Example:
        >>> import torch, pyseg
        >>> _ = torch.manual_seed(0)
        >>> features, assignment = torch.randn(2, 5, 4, 6), torch.randn(2, 5, 4, 3)
        >>> attention, centers = torch.rand(2, 5, 4), torch.randn(6, 3)
        >>> vlad = pyseg.ops.vlad_aggregate(features, assignment, attention, centers)
        >>> vlad.shape
        torch.Size([2, 6, 3])
        >>> torch.allclose(vlad.norm(dim=1), torch.ones(2, 3))
        True
    """
    if in_autocast(features):
        inputs = to_autocast_dtype(features, assignment, attention, centers)
        with torch.autocast(features.device.type, enabled=False):
            return vlad_aggregate(*inputs, norm=norm, eps=eps)
    _check(features, assignment, attention, centers, norm, eps)
    if has_kernel(features):
        op = torch.ops.pyseg.vlad_aggregate.default
        packed = pack_norm(assignment, norm)
        return op(features, assignment, attention, centers, *packed, eps, allow_tf32(features))[0]
    return _reference(features, assignment, attention, centers, norm, eps)


def vlad_aggregate_reference(
    features: Tensor,
    assignment: Tensor,
    attention: Tensor,
    centers: Tensor,
    *,
    norm: AssignmentNorm | None = None,
    eps: float = 1e-12,
) -> Tensor:
    """Returns what :func:`vlad_aggregate` returns, in plain PyTorch: its definition and fallback.

    Arguments, result and errors are those of :func:`vlad_aggregate`. It can be differentiated any
    number of times and needs several tensors of the size of ``assignment``. bfloat16 products are
    PyTorch's own, sums and norms are taken in float32; float16 is computed in float32 throughout,
    since its range does not hold the gradient of a zero column.

    Example:
        >>> import torch, pyseg
        >>> features, assignment = torch.ones(1, 2, 1, 3), torch.zeros(1, 2, 1, 1)
        >>> attention, centers = torch.ones(1, 2, 1), torch.zeros(3, 1)
        >>> vlad = pyseg.ops.vlad_aggregate_reference(features, assignment, attention, centers)
        >>> vlad.flatten()
        tensor([0.5774, 0.5774, 0.5774])
    """
    _check(features, assignment, attention, centers, norm, eps)
    return _reference(features, assignment, attention, centers, norm, eps)


def _reference(
    features: Tensor,
    assignment: Tensor,
    attention: Tensor,
    centers: Tensor,
    norm: AssignmentNorm | None,
    eps: float,
) -> Tensor:
    dtype = features.dtype
    if dtype == torch.float16:
        features, assignment, attention, centers = (
            tensor.float() for tensor in (features, assignment, attention, centers)
        )
    accumulate = sum_dtype(dtype)
    rows = features.flatten(1, 2)  # (B, T*G, F)
    probability = normalize(assignment, norm).softmax(-1).to(rows.dtype)
    weights = (probability * attention.unsqueeze(-1)).flatten(1, 2)  # (B, T*G, K)
    mass = weights.sum(1, keepdim=True, dtype=accumulate)  # (B, 1, K)
    vlad = torch.matmul(rows.mT, weights).to(accumulate) - centers.to(accumulate) * mass
    square_norm = vlad.square().sum(1, keepdim=True)
    return (vlad * square_norm.clamp_min(eps).rsqrt()).to(dtype)


def _check(
    features: Tensor,
    assignment: Tensor,
    attention: Tensor,
    centers: Tensor,
    norm: AssignmentNorm | None,
    eps: float,
) -> None:
    """Raises an error that names the first argument which does not fit."""
    arguments = {
        "features": (features, "(B, T, G, F)"),
        "assignment": (assignment, "(B, T, G, K)"),
        "attention": (attention, "(B, T, G)"),
        "centers": (centers, "(F, K)"),
    }
    check_layout(arguments)
    others = {name: tensor for name, (tensor, _) in arguments.items() if name != "features"}
    check_alike(("features", features), others)
    batch, frames, groups, width = features.shape
    clusters = assignment.shape[3]
    expected = {
        "assignment": (batch, frames, groups, clusters),
        "attention": (batch, frames, groups),
        "centers": (width, clusters),
    }
    for name, shape in expected.items():
        tensor, layout = arguments[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must be {layout} = {tuple(shape)} to fit "
                f"features {tuple(features.shape)}, got {tuple(tensor.shape)}"
            )
    if clusters < 1:
        raise ValueError(
            f"assignment must have at least 1 cluster, got shape {tuple(assignment.shape)}"
        )
    check_norm(assignment, norm)
    if not _SMALLEST_EPS <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least {_SMALLEST_EPS:.3g}, got {eps}")


def _fake(
    features: Tensor,
    assignment: Tensor,
    attention: Tensor,
    centers: Tensor,
    norm: Tensor | None = None,
    row_weights: Tensor | None = None,
    eps: float = 1e-12,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(features, assignment, attention, centers, None, eps)
    batch, clusters = features.shape[0], assignment.shape[3]
    sums = sum_dtype(features.dtype)
    return (
        features.new_empty(batch, features.shape[3], clusters),
        features.new_empty(batch, clusters, dtype=sums),
        features.new_empty(batch, clusters, dtype=sums),
    )


def _backward_fake(
    grad: Tensor,
    features: Tensor,
    assignment: Tensor,
    attention: Tensor,
    centers: Tensor,
    norm: Tensor | None,
    row_weights: Tensor | None,
    output: Tensor,
    mass: Tensor,
    square_norm: Tensor,
    eps: float,
    needs_features_grad: bool,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        features.new_empty(features.shape if needs_features_grad else (0,)),
        assignment.new_empty(assignment.shape),
        attention.new_empty(attention.shape),
        centers.new_empty(centers.shape),
        fake_norm_sums(assignment, norm),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.allow_tf32 = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_gradient(ctx, "vlad_aggregate", {5: "norm.row_weights"})
    needs_features_grad = ctx.needs_input_grad[0]
    norm, row_weights = ctx.saved_tensors[4:6]
    op = torch.ops.pyseg.vlad_aggregate_backward.default
    features_grad, *grads, sums = op(
        grad, *ctx.saved_tensors, ctx.eps, needs_features_grad, ctx.allow_tf32
    )
    return (
        features_grad if needs_features_grad else None,
        *grads,
        norm_gradient(norm, row_weights, sums),
        None,
        None,
        None,
    )


def _autocast(
    features: Tensor,
    assignment: Tensor,
    attention: Tensor,
    centers: Tensor,
    norm: Tensor | None = None,
    row_weights: Tensor | None = None,
    eps: float = 1e-12,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = to_autocast_dtype(features, assignment, attention, centers)
    with torch.autocast(features.device.type, enabled=False):
        return torch.ops.pyseg.vlad_aggregate.default(*inputs, norm, row_weights, eps, allow_tf32)


if _ext.HAS_CPU_OPS:  # then the schemas are loaded too
    register_fake("vlad_aggregate", _fake)
    register_fake("vlad_aggregate_backward", _backward_fake)
    register_autograd("vlad_aggregate", _backward, _setup_context)
    register_autograd("vlad_aggregate_backward", refuse_double_backward("vlad_aggregate"))
    register_autocast("vlad_aggregate", _autocast)
