"""Soft-assignment aggregation of NetVLAD and NeXtVLAD, see :func:`vlad_aggregate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyseg.ops._dispatch import allow_tf32, has_kernel, sum_dtype
from pyseg.ops._op import Argument, Op, check_at_least
from pyseg.ops.assignment import (
    NORM_PARTS,
    AssignmentNorm,
    call_backward,
    call_unchecked,
    call_with_norm,
    check_assignment,
    fake_norm_sums,
    normalize,
)

_SMALLEST_EPS = torch.finfo(torch.float32).tiny

_OP = Op(
    "vlad_aggregate",
    features=Argument("(B, T, G, F)"),
    assignment=Argument("(B, T, G, K)"),
    attention=Argument("(B, T, G)"),
    centers=Argument("(F, K)"),
)
_BACKWARD = Op("vlad_aggregate_backward")


@_OP.autocast()
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

    Compiled kernels support CPU and CUDA tensors and accumulate in float32 (float64 for float64
    input); the softmax is recomputed in the backward pass, so that nothing of size (B, T, G, K) is
    saved. On a GPU float32 may be rounded to TF32, as in PyTorch's matrix products
    (``torch.set_float32_matmul_precision``). If no kernel is loaded (``python -m pyseg.info`` says
    why), :func:`vlad_aggregate_reference` runs instead. The result is deterministic: the same input
    gives the same bits on one device, for any number of threads.

    Under autocast the op is one of the matrix products: inputs are cast to autocast's dtype (except
    float64, as everywhere in autocast), sums stay in float32. All inputs but ``norm.row_weights``
    have a gradient; for second and forward-mode derivatives, which raise an error, use
    :func:`vlad_aggregate_reference`. In float16 the gradient of ``attention`` saturates at the
    largest finite value: a video without any attended frame has zero columns, whose gradient of the
    order of ``eps ** -0.5`` must not become NaN when the mask multiplies it by 0.

    Args:
        features: (B, T, G, F) frame features in G groups; float32, float64, float16 or bfloat16.
        assignment: (B, T, G, K) scores of the K clusters, before the softmax over K.
        attention: (B, T, G) weight of every group of every frame, already 0 on padding.
        centers: (F, K) cluster centres, a column each.
        norm: batch normalisation of the assignment before the softmax; the normalised values are
            never written to memory.
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
    tensors = features, assignment, attention, centers
    try:
        found = call_unchecked(_OP, *tensors, norm=norm, others=(eps, allow_tf32(features)))
    except (RuntimeError, AttributeError):
        _check(*tensors, norm=norm, eps=eps)
        raise
    if found is None:
        _check(*tensors, norm=norm, eps=eps)
        if not has_kernel(features):
            return vlad_aggregate_reference(*tensors, norm=norm, eps=eps)
        found = call_with_norm(_OP, *tensors, norm=norm, others=(eps, allow_tf32(features)))
    return found[0]


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
    _check(features, assignment, attention, centers, norm=norm, eps=eps)
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


def _check(*tensors: Tensor, norm: AssignmentNorm | None, eps: float) -> dict[str, int]:
    """Checks the arguments and returns the sizes; the error names the first that does not fit."""
    sizes = _OP.check(*tensors)
    check_assignment(tensors[1], norm)
    check_at_least("eps", eps, _SMALLEST_EPS)
    return sizes


@_OP.fake
def _fake(
    features: Tensor, assignment: Tensor, attention: Tensor, centers: Tensor, eps: float, **_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = _check(features, assignment, attention, centers, norm=None, eps=eps)
    batch, width, clusters = sizes["B"], sizes["F"], sizes["K"]
    sums = sum_dtype(features.dtype)
    return (
        features.new_empty(batch, width, clusters),
        features.new_empty(batch, clusters, dtype=sums),
        features.new_empty(batch, clusters, dtype=sums),
    )


@_BACKWARD.fake
def _backward_fake(
    features: Tensor,
    assignment: Tensor,
    attention: Tensor,
    centers: Tensor,
    norm: Tensor | None,
    needs_features_grad: bool,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        features.new_empty(features.shape if needs_features_grad else (0,)),
        assignment.new_empty(assignment.shape),
        attention.new_empty(attention.shape),
        centers.new_empty(centers.shape),
        fake_norm_sums(assignment, norm),
    )


@_OP.gradient(
    "features assignment attention centers norm row_weights output mass square_norm eps allow_tf32",
    constant="mass square_norm",
    refused={"row_weights": "norm.row_weights"},
    parts=NORM_PARTS,
)
def _gradient(grad: Tensor, *, needed: dict[str, bool], **saved: Any) -> dict[str, Tensor]:
    others = {"grad": grad, "needs_features_grad": needed["features"]}
    grads, by_norm = call_backward(_BACKWARD, saved, needed, **others)
    return {**dict(zip(_OP.arguments, grads, strict=True)), **by_norm}


_BACKWARD.refuse_gradient()
