"""The soft assignment of VLAD layers: batch normalisation, softmax over clusters, attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseg.errors import ArgumentError
from pyseg.ops._dispatch import as_dtype, has_kernel, sum_dtype
from pyseg.ops._op import (
    Argument,
    Op,
    Passed,
    check_at_least,
    check_device,
    check_tensor,
    is_plain,
    misfit,
    wants_gradient,
)

_ASSIGN = Op("soft_assign", assignment=Argument("(B, T, G, K)"), attention=Argument("(B, T, G)"))
_ASSIGN_BACKWARD = Op("soft_assign_backward")
_MOMENTS = Op(
    "moments", x=Argument("(R, C)"), row_weights=Argument("(R,)", "floating", optional=True)
)
_STATISTICS = Op("batch_statistics_")


class AssignmentNorm(NamedTuple):
    r"""Batch normalisation of an assignment, applied by an op while it reads the assignment.

    .. math:: y_{tgk} = (z_{tgk} - mean_{gk}) / \sqrt{variance_{gk} + eps} \cdot weight_{gk}
        + bias_{gk}

    The normalised assignment is never written to memory. With `row_weights`, `mean` and `variance`
    are the statistics of this assignment, as :func:`moments` returns them for the same weights, and
    the op's gradient with respect to the assignment includes them. Without, they are constants, as
    in inference.

    Fusion saves memory traffic: the statistics are needed before the first softmax, which costs one
    reading (:func:`moments`), and the gradient's two sums over a batch before the first gradient,
    which costs one more pass. PyTorch's batch norm costs seven more passes.

    Attributes:
        mean: (G*K,) or (G, K).
        variance: the same; biased (divided by the number of rows).
        weight: the same; the scale after normalisation.
        bias: the same; the offset after normalisation.
        eps: added to the variance.
        row_weights: (B*T,) or (B, T), the weight of each frame in the statistics, with sum 1:
            1 / (B*T) everywhere, or 0 for frames that are left out. ``None``: the statistics are
            constants.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    eps: float = 1e-3
    row_weights: Tensor | None = None


class PackedNorm(AssignmentNorm):
    """An `AssignmentNorm` with statistics of a batch that also has the form which kernels read.

    Attributes:
        packed: (4, G*K): mean, 1 / sqrt(variance + eps), weight and bias, in the dtype of sums.
            ``None`` after `_replace`.
    """

    packed: Tensor | None = None


def moments(x: Tensor, row_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Returns mean and biased variance of every column, in one reading of `x`.

    .. math::
        mean_c = \sum_r w_r x_{rc}, \qquad variance_c = \sum_r w_r (x_{rc} - mean_c)^2

    Deterministic. The gradient takes several passes in plain PyTorch. Ops that take an
    :class:`AssignmentNorm` with `row_weights` include the statistics in their own gradient: pass
    ``x.detach()`` here. Only :func:`moments_reference` has forward-mode derivatives.

    Args:
        x: (R, C), float32, float64, float16 or bfloat16.
        row_weights: (R,) non-negative weights with sum 1 (rows of weight 0 are left out; all 0:
            both results are 0). ``None``: 1 / R each.

    Returns:
        mean and variance, (C,) each, float64 for float64 and float32 otherwise.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: a shape or a device does not fit.
        RuntimeError: on the CPU, a weight is negative.

    Example:
        >>> import torch, pyseg
        >>> mean, variance = pyseg.ops.moments(torch.tensor([[1.0, 5.0], [3.0, 9.0]]))
        >>> mean.tolist(), variance.tolist()
        ([2.0, 7.0], [1.0, 4.0])
    """
    _MOMENTS.check(x, row_weights)
    if not has_kernel(x):
        return _moments(x, row_weights)
    weights = None if row_weights is None else as_dtype(row_weights, sum_dtype(x.dtype))
    mean, variance = _MOMENTS(x, weights).unbind()
    return mean, variance


def batch_statistics_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    deferred_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    unbiased: bool,
) -> tuple[Tensor, Tensor]:
    """Takes the statistics of a batch and moves running ones towards them, for a `PackedNorm`.

    All tensors have to be such that `is_plain` and `has_kernel`; no gradient is recorded, and what
    the kernel checks is not checked before: in a training step that takes as long as the kernel.

    Args:
        x: (..., C), floating.
        weight: (C,) of the dtype of sums, as all vectors.
        bias: (C,).
        deferred_bias: (C,) what the running mean includes in addition, or ``None``.
        running_mean: (C,), changed in place, as `torch.lerp` does by `momentum`.
        running_var: (C,), likewise.
        momentum: the weight of the batch in the running statistics.
        eps: added to the variance in `PackedNorm.packed`.
        unbiased: whether the running variance is that of a sample.

    Returns:
        (2, C) mean and biased variance, and (4, C) `PackedNorm.packed`.
    """
    results: tuple[Tensor, Tensor] = _STATISTICS.call_kernel(
        x, weight, bias, deferred_bias, running_mean, running_var, momentum, eps, unbiased
    )
    torch.autograd.graph.increment_version((running_mean, running_var))
    return results


def batch_statistics_reference_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    deferred_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    unbiased: bool,
) -> tuple[Tensor, Tensor]:
    """Does what :func:`batch_statistics_` does, in plain PyTorch."""
    rows = x.reshape(-1, x.shape[-1])
    mean, variance = _moments(rows, None)
    count = len(rows)
    if count:
        center = mean if deferred_bias is None else mean + deferred_bias
        correction = count / max(count - 1, 1) if unbiased else 1.0
        running_mean.lerp_(center.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * correction).to(running_var.dtype), momentum)
    rstd = torch.rsqrt(variance + eps)
    return torch.stack((mean, variance)), torch.stack((mean, rstd, weight, bias))


def moments_reference(x: Tensor, row_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns what :func:`moments` returns, in plain PyTorch and differentiable.

    Example:
        >>> import torch, pyseg
        >>> x = torch.tensor([[1.0], [3.0], [1e9]])
        >>> mean, variance = pyseg.ops.moments_reference(x, torch.tensor([0.5, 0.5, 0.0]))
        >>> mean.item(), variance.item()
        (2.0, 1.0)
    """
    _MOMENTS.check(x, row_weights)
    return _moments(x, row_weights)


def _moments(x: Tensor, row_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    x, weights = _weighted(x, row_weights)
    mean = (x * weights).sum(0)
    return mean, ((x - mean).square() * weights).sum(0)


def _weighted(x: Tensor, row_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns x (R, C) and the weights of its rows (R, 1) in the dtype of sums."""
    x = x.to(sum_dtype(x.dtype))
    if row_weights is None:
        return x, x.new_full((x.shape[0], 1), 1.0 / max(x.shape[0], 1))
    weights = row_weights.to(x.dtype).unsqueeze(1)
    return x.where(weights > 0, 0.0), weights  # excluded rows may have any values


@_ASSIGN.autocast()
def soft_assign(
    assignment: Tensor,
    attention: Tensor,
    *,
    norm: AssignmentNorm | None = None,
    by_cluster: bool = False,
) -> Tensor:
    r"""Returns the weight of every cluster for every group of every frame.

    .. math:: w_{tgk} = \alpha_{tg} \operatorname{softmax}_k(z_{tg})_k

    It is the first half of :func:`pyseg.ops.vlad_aggregate`, for aggregating something else with
    the weights: one pass over the assignment, and one in the gradient (two on a GPU with the
    statistics of a batch), which recomputes the softmax and takes the gradient of the weights in
    either order of memory. Autocast's matrix-product dtype applies, sums stay in float32. The same
    derivatives as of :func:`pyseg.ops.vlad_aggregate` exist; :func:`soft_assign_reference` has all
    others.

    Args:
        assignment: (B, T, G, K) scores of the K clusters, before `norm` and the softmax over K;
            float32, float64, float16 or bfloat16.
        attention: (B, T, G) weight of every group of every frame, already 0 on padding.
        norm: batch normalisation of the assignment before the softmax.
        by_cluster: whether the weights of a frame lie in memory cluster by cluster, as matrix
            products over frames, such as :func:`pyseg.ops.frame_pool`, read them.

    Returns:
        (B, T, G, K) weights of the dtype of `assignment`, contiguous. With `by_cluster` they are a
        transposed view, and ``weights.mT``, (B, T, K, G), is contiguous.

    Raises:
        TypeError: an argument is not a tensor, or the dtypes differ or are not floating.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, pyseg
        >>> weights = pyseg.ops.soft_assign(torch.zeros(1, 1, 1, 4), torch.full((1, 1, 1), 0.5))
        >>> weights.flatten().tolist()
        [0.125, 0.125, 0.125, 0.125]
    """
    try:
        found = call_unchecked(_ASSIGN, assignment, attention, norm=norm, others=(by_cluster,))
    except RuntimeError:
        _check(assignment, attention, norm)
        raise
    if found is not None:
        return found
    _check(assignment, attention, norm)
    if not has_kernel(assignment):
        return soft_assign_reference(assignment, attention, norm=norm, by_cluster=by_cluster)
    return call_with_norm(_ASSIGN, assignment, attention, norm=norm, others=(by_cluster,))


def _check(assignment: Tensor, attention: Tensor, norm: AssignmentNorm | None) -> None:
    """Checks the arguments; the error names the first that does not fit."""
    _ASSIGN.check(assignment, attention)
    check_assignment(assignment, norm)


def soft_assign_reference(
    assignment: Tensor,
    attention: Tensor,
    *,
    norm: AssignmentNorm | None = None,
    by_cluster: bool = False,
) -> Tensor:
    """Returns what :func:`soft_assign` returns, in plain PyTorch: its definition and fallback.

    Arguments, result and errors are those of :func:`soft_assign`. It can be differentiated any
    number of times.

    Example:
        >>> import torch, pyseg
        >>> pyseg.ops.soft_assign_reference(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1)).flatten()
        tensor([0.5000, 0.5000])
    """
    _check(assignment, attention, norm)
    probability = normalize(assignment, norm).softmax(-1)
    weights = (probability * attention.unsqueeze(-1)).to(assignment.dtype)
    return weights.mT.contiguous().mT if by_cluster else weights


def normalize(assignment: Tensor, norm: AssignmentNorm | None) -> Tensor:
    """Applies `norm`, if any, in plain PyTorch; the result then has the dtype of sums."""
    if norm is None:
        return assignment
    shape = assignment.shape[2:]
    z = assignment.to(sum_dtype(assignment.dtype))
    mean, variance, weight, bias = (t.to(z.dtype).reshape(shape) for t in norm[:4])
    if norm.row_weights is not None:  # functions of the assignment, so that gradients include them
        columns = _moments(z.flatten(0, 1).flatten(1), norm.row_weights.flatten())
        mean, variance = (t.reshape(shape) for t in columns)
    return (z - mean) * torch.rsqrt(variance + norm.eps) * weight + bias


NORM_PARTS = ("norm.weight", "norm.bias")


def call_unchecked(
    op: Op, *tensors: Tensor, norm: AssignmentNorm | None, others: tuple[Any, ...]
) -> Any:
    """Calls an op where that takes no more than its kernel, which checks its arguments itself.

    Returns:
        What the op returns; ``None`` where something intercepts it, no kernel is loaded, or `norm`
        has to be packed, and arguments are to be checked first.

    Raises:
        RuntimeError: an argument does not fit; the caller's own checks know how to say so.
    """
    packed: Tensor | None = None
    row_weights: Tensor | None = None
    parts: tuple[Tensor, ...] = ()
    if norm is not None:
        if not isinstance(norm, PackedNorm) or norm.packed is None:
            return None
        row_weights, parts = norm.row_weights, norm[2:4]
        packed = norm.packed
    if not is_plain((*tensors, *parts, row_weights)) or not has_kernel(tensors[0]):
        return None
    if packed is not None:
        assignment = tensors[op.places["assignment"]]
        if packed.dtype != sum_dtype(assignment.dtype):
            return None
    return op.with_parts(*tensors, packed, row_weights, *others, parts=parts)


def call_with_norm(
    op: Op, *tensors: Tensor, norm: AssignmentNorm | None, others: tuple[Any, ...] = ()
) -> Any:
    """Calls an op with `norm` between its tensors and its other arguments.

    The native ops take `norm` as one tensor, (4, G*K), and its row weights, (B*T,). In a training
    step only weight and bias have a gradient, which the backward op returns as it is.
    """
    if norm is None:
        return op(*tensors, None, None, *others)
    dtype = sum_dtype(tensors[op.places["assignment"]].dtype)
    *statistics, weight, bias = norm[:4]
    if norm.row_weights is None:
        return op(*tensors, _pack(norm, dtype), None, *others)
    row_weights = as_dtype(norm.row_weights, dtype).flatten()
    if wants_gradient(*statistics) or not is_plain((*tensors, *norm[:4], row_weights)):
        return op(*tensors, _pack(norm, dtype), row_weights, *others)
    with torch._C._AutoDispatchBelowAutograd():
        packed = _pack(norm, dtype)
    parts = [part if part.dim() == 1 else part.flatten() for part in (weight, bias)]
    return op.with_parts(*tensors, packed, row_weights, *others, parts=parts)


def _pack(norm: AssignmentNorm, dtype: torch.dtype) -> Tensor:
    mean, variance, weight, bias = [as_dtype(t, dtype).flatten() for t in norm[:4]]
    return torch.stack((mean, torch.rsqrt(variance + norm.eps), weight, bias))


def call_backward(
    op: Op, saved: dict[str, Any], needed: dict[str, bool], **others: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Calls a backward op.

    Returns:
        The gradients of the tensors before `norm`, and those of `norm` or of its parts by name.
    """
    if (parts := saved.pop("parts", None)) is not None:
        # The op has to see that there is a second derivative, which it refuses.
        statistics = saved["norm"][:2]
        saved["norm"] = torch.stack(
            (*statistics, *(as_dtype(part, statistics.dtype) for part in parts))
        )
    norm = saved["norm"]
    *grads, sums = op(**others, **saved)
    if "norm.weight" in needed:
        return grads, dict(zip(NORM_PARTS, sums.unbind(), strict=True))
    if norm is None or not needed["norm"]:
        return grads, {}
    by_weight, by_bias = sums.unbind()
    _, rstd, weight, _ = norm.unbind()
    if saved["row_weights"] is not None:  # the assignment's gradient includes the statistics
        by_mean = by_rstd = torch.zeros_like(rstd)
    else:
        by_mean, by_rstd = -rstd * weight * by_bias, weight * by_weight / rstd
    return grads, {"norm": torch.stack((by_mean, by_rstd, by_weight, by_bias))}


def check_assignment(assignment: Tensor, norm: AssignmentNorm | None) -> None:
    """Raises if there is no cluster, or a field of `norm` does not fit `assignment`."""
    if assignment.shape[3] < 1:
        raise ArgumentError(
            f"assignment: expected at least 1 cluster, found shape {tuple(assignment.shape)}"
        )
    if norm is None:
        return
    if not isinstance(norm, AssignmentNorm):
        raise TypeError(f"norm: expected an AssignmentNorm, found {type(norm).__name__}")
    _PASSED.check(_check_norm, assignment, *norm[:4], norm.row_weights)
    check_at_least("norm.eps", norm.eps, 0.0)


_PASSED = Passed()


def _check_norm(assignment: Tensor, *fields: Any) -> None:
    batch, frames, groups, clusters = assignment.shape
    names = "mean", "variance", "weight", "bias", "row_weights"
    for field, tensor in zip(names, fields, strict=True):
        name = f"norm.{field}"
        shapes: list[tuple[int, ...]] = [(groups, clusters), (groups * clusters,)]
        layout = "(G*K,) or (G, K)"
        if field == "row_weights":
            if tensor is None:
                continue
            shapes, layout = [(batch, frames), (batch * frames,)], "(B, T) or (B*T,)"
        check_tensor(name, tensor, "floating")
        check_device(name, tensor, "assignment", assignment)
        if tuple(tensor.shape) not in shapes:
            raise misfit(name, layout, shapes[0], tensor, "assignment", assignment)


def fake_norm_sums(assignment: Tensor, norm: Tensor | None) -> Tensor:
    """Returns the fake of the sums of a backward op."""
    shape = (0,) if norm is None else (2, norm.shape[1])
    return assignment.new_empty(shape, dtype=sum_dtype(assignment.dtype))


@_ASSIGN.fake
def _fake(assignment: Tensor, attention: Tensor, by_cluster: bool, **_: Any) -> Tensor:
    _ASSIGN.check(assignment, attention)
    check_assignment(assignment, None)
    if by_cluster:
        return assignment.new_empty(assignment.mT.shape).mT
    return assignment.new_empty(assignment.shape)


@_ASSIGN_BACKWARD.fake
def _backward_fake(
    assignment: Tensor, attention: Tensor, norm: Tensor | None, **_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        assignment.new_empty(assignment.shape),
        attention.new_empty(attention.shape),
        fake_norm_sums(assignment, norm),
    )


@_ASSIGN.gradient(
    "assignment attention norm row_weights",
    refused={"row_weights": "norm.row_weights"},
    parts=NORM_PARTS,
)
def _gradient(grad: Tensor, *, needed: dict[str, bool], **saved: Any) -> dict[str, Tensor]:
    grads, by_norm = call_backward(_ASSIGN_BACKWARD, saved, needed, grad=grad)
    return {**dict(zip(_ASSIGN.arguments, grads, strict=True)), **by_norm}


_ASSIGN_BACKWARD.refuse_gradient()


@_MOMENTS.fake
def _moments_fake(x: Tensor, row_weights: Tensor | None) -> Tensor:
    _MOMENTS.check(x, row_weights)
    return x.new_empty((2, x.shape[1]), dtype=sum_dtype(x.dtype))


@_STATISTICS.fake
def _statistics_fake(x: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    dtype, columns = sum_dtype(x.dtype), x.shape[-1]
    return x.new_empty((2, columns), dtype=dtype), x.new_empty((4, columns), dtype=dtype)


_STATISTICS.refuse_gradient()


@_MOMENTS.gradient("x row_weights")
def _moments_gradient(
    grad: Tensor, *, needed: dict[str, bool], x: Tensor, row_weights: Tensor | None
) -> dict[str, Tensor | None]:
    values, weights = _weighted(x, row_weights)
    by_mean, by_variance = grad.unbind()
    centered = values - (values * weights).sum(0)
    by_mean = by_mean - 2 * by_variance * (centered * weights).sum(0)  # 0 if the weights sum to 1
    rows = weights * (by_mean + 2 * by_variance * centered)
    by_weights = None
    if needed["row_weights"]:
        by_weights = (by_mean * values + by_variance * centered.square()).sum(1)
    return {"x": rows.to(x.dtype), "row_weights": by_weights}
