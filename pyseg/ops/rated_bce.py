"""The loss for incomplete ratings, see :func:`rated_bce_with_logits`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from pyseg.errors import ArgumentError
from pyseg.ops._dispatch import as_dtype, has_kernel, sum_dtype
from pyseg.ops._op import (
    Argument,
    Op,
    check_arguments,
    check_at_least,
    check_device,
    is_plain,
    misfit,
    wants_gradient,
)

if TYPE_CHECKING:
    from pyseg.labels import LabelCorrelation


_RATINGS = {
    "offsets": Argument("(B + 1,)", "integers"),
    "classes": Argument("(R,)", "integers"),
    "scores": Argument("(R,)", "floating"),
}
_OP = Op("rated_bce_with_logits", logits=Argument("(B, C)"), **_RATINGS)
_BACKWARD = Op("rated_bce_with_logits_backward", grad=Argument("(B, C)"))
_BACKWARD_IN_PLACE = Op("rated_bce_with_logits_backward_", grad=Argument("(B, C)"))


def rated_bce_with_logits(
    logits: Tensor,
    offsets: Tensor,
    classes: Tensor,
    scores: Tensor,
    correlation: LabelCorrelation | None = None,
    *,
    rated_weight: float = 2.5,
    unrated_weight: float = 0.1,
    absent_evidence: float = 0.0,
) -> Tensor:
    r"""Returns the reweighted, correlation-aware binary cross-entropy, in one pass over the logits.

    .. math::
        loss = \frac{1}{B} \sum_{b,j} w_{bj} \left( \operatorname{softplus}(z_{bj})
            - y'_{bj} z_{bj} \right), \qquad
        y'_{bj} = \begin{cases} s & j \text{ is rated with score } s \\
            \min(1, \sum_i e_i P'_{ij}) & \text{else, } i \text{ over the rated classes}
        \end{cases}, \qquad
        e_i = s_i + a (1 - s_i)

    with :math:`w_{bj}` = `rated_weight` on rated classes, whatever their score, and
    `unrated_weight` on all others, also those that are correlated with a rated one. So a rated 0
    stays 0, and a row without ratings costs `unrated_weight` times the cross-entropy with target 0.
    With both weights 1 and labels as ratings of score 1 it is the multi-label cross-entropy of
    pretraining. The paper's :math:`a` is 0. But raters are asked about a class because something
    suggests it: classes that occur with it may be present even if it is not, and then a larger
    `absent_evidence` helps.

    Targets and weights of size (B, C) are never formed; if autograd needs the gradient
    :math:`w (\sigma(z) - y') / B`, the same pass computes it. Sums are accumulated in float32
    (float64 for float64), logits of any size give a finite loss, and the result is deterministic.
    There are no second or forward-mode derivatives: for these use
    :func:`rated_bce_with_logits_reference`, which also runs here if the scores or the correlation's
    values require a gradient, or no kernel is loaded. Under autocast the op is one of the losses:
    logits are not cast, the loss is float32.

    Args:
        logits: (B, C) float32, float64, float16 or bfloat16.
        offsets: (B + 1,) integers: row b rates ``classes[offsets[b]:offsets[b + 1]]``. Ratings from
            ``offsets[B]`` on are padding, whatever they hold: batches of one size R, as a CUDA
            graph needs them.
        classes: (R,) integers in 0..C-1, each at most once in a row.
        scores: (R,) floating, in [0, 1].
        correlation: P' of C classes, on the device of the logits; ``None``: no relations.
        rated_weight: the paper's m, at least 0.
        unrated_weight: the paper's n, at least 0.
        absent_evidence: a in [0, 1], the evidence of a class rated 0 for others, relative to that
            of one rated 1.

    Returns:
        The loss, a scalar, float64 for float64 logits and float32 otherwise.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: shapes, devices, the number of classes or a weight do not fit.
        RuntimeError: on the CPU, a class is out of range or twice in a row, offsets do not increase
            from 0 to at most R, or a score is outside [0, 1] or NaN. On a GPU, where an error would
            need a synchronisation, the loss and the gradient of those rows are NaN instead.

    References:
        The paper's equations (1), (2), (3) and (6).

    Example:
        >>> import torch, pyseg
        >>> from pyseg.labels import LabelCorrelation
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> columns, values = torch.tensor([1]), torch.tensor([0.6])
        >>> correlation = LabelCorrelation(torch.tensor([0, 1, 1, 1]), columns, values)
        >>> rated = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0])
        >>> loss = pyseg.ops.rated_bce_with_logits(logits, *rated, correlation)
        >>> loss.backward()
        >>> logits.grad  # 2.5 (0.5 - 1), 0.1 (0.5 - 0.6), 0.1 (0.5 - 0)
        tensor([[-1.2500, -0.0100,  0.0500]])
    """
    weights = {
        "rated_weight": rated_weight,
        "unrated_weight": unrated_weight,
        "absent_evidence": absent_evidence,
    }
    tensors = logits, offsets, classes, scores
    if correlation is None and _is_ready(*tensors):
        try:  # the kernel checks its arguments itself
            return _OP.with_parts(
                *tensors, None, None, None, *weights.values(), wants_gradient(logits), parts=()
            )[0]
        except RuntimeError:
            _check(*tensors, correlation=None, **weights)
            raise
    _check(*tensors, correlation=correlation, **weights)
    values = None if correlation is None else correlation.values
    if wants_gradient(scores, values) or not has_kernel(logits):
        return rated_bce_with_logits_reference(
            *tensors,
            correlation,
            rated_weight=rated_weight,
            unrated_weight=unrated_weight,
            absent_evidence=absent_evidence,
        )
    sums = sum_dtype(logits.dtype)
    relations: tuple[Tensor | None, ...] = (None, None, None)
    if correlation is not None:
        values = correlation.values
        relations = correlation.offsets, correlation.columns, as_dtype(values, sums)
    places = as_dtype(offsets, torch.long), as_dtype(classes, torch.long)
    others = rated_weight, unrated_weight, absent_evidence, wants_gradient(logits)
    return _OP(logits, *places, as_dtype(scores, sums), *relations, *others)[0]


def _is_ready(logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor) -> bool:
    """Returns whether the kernel reads these tensors as they are, and nothing intercepts it."""
    return (
        is_plain((logits, offsets, classes, scores))
        and has_kernel(logits)
        and offsets.dtype == classes.dtype == torch.long
        and scores.dtype == sum_dtype(logits.dtype)
        and not wants_gradient(scores)
    )


def rated_bce_with_logits_reference(
    logits: Tensor,
    offsets: Tensor,
    classes: Tensor,
    scores: Tensor,
    correlation: LabelCorrelation | None = None,
    *,
    rated_weight: float = 2.5,
    unrated_weight: float = 0.1,
    absent_evidence: float = 0.0,
    absent: LabelCorrelation | None = None,
) -> Tensor:
    """Returns what :func:`rated_bce_with_logits` returns, in plain PyTorch: its definition.

    Arguments and errors are those of :func:`rated_bce_with_logits`, and `absent`, which no kernel
    takes, that of :func:`correlated_targets`. It forms targets and weights of
    size (B, C), and can be differentiated any number of times.

    Example:
        >>> import torch, pyseg
        >>> rated = torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([0.0])
        >>> pyseg.ops.rated_bce_with_logits_reference(torch.zeros(1, 2), *rated)
        tensor(1.8022)
    """
    tensors = logits, offsets, classes, scores
    _check(
        *tensors,
        correlation=correlation,
        rated_weight=rated_weight,
        unrated_weight=unrated_weight,
        absent_evidence=absent_evidence,
    )
    _check_absent(absent, absent_evidence, logits.shape[1], logits)
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        try:
            _check_values(offsets, classes, scores, logits.shape[1])
        except ValueError as error:  # the error of the kernel
            raise RuntimeError(str(error)) from None
    sums = sum_dtype(logits.dtype)
    targets, rated = _targets(
        offsets, classes, scores.to(sums), correlation, logits.shape[1], absent_evidence, absent
    )
    weights = torch.full_like(targets, unrated_weight).masked_fill(rated, rated_weight)
    loss = functional.binary_cross_entropy_with_logits(
        logits.to(sums), targets, weights, reduction="sum"
    )
    return loss / max(logits.shape[0], 1)


def correlated_targets(
    offsets: Tensor,
    classes: Tensor,
    scores: Tensor,
    correlation: LabelCorrelation | None,
    num_classes: int,
    *,
    absent_evidence: float = 0.0,
    absent: LabelCorrelation | None = None,
) -> Tensor:
    """Returns the dense targets y' of equation (6).

    Args:
        offsets: (B + 1,) integers: row b rates ``classes[offsets[b]:offsets[b + 1]]``, and ratings
            from ``offsets[B]`` on are padding.
        classes: (R,) integers in 0..C-1, each at most once in a row.
        scores: (R,) floating, in [0, 1].
        correlation: P' of C classes, on the device of the scores; ``None``: no relations.
        num_classes: the number of classes C.
        absent_evidence: see `rated_bce_with_logits`.
        absent: P of C classes given that a class is rated 0, as of `LabelCorrelation.when_absent`,
            in place of `absent_evidence`.

    Returns:
        (B, C) of the dtype of `scores`: the score of a rated class, and for the others
        ``min(1, sum of e * P')`` over the rated ones; with `absent`, the sum of
        ``s * P' + (1 - s) * absent`` over their scores s.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: shapes, devices or the number of classes do not fit; on the CPU also a class out
            of range or twice in a row, offsets that do not increase, a score outside [0, 1].

    Example:
        >>> import torch, pyseg
        >>> from pyseg.labels import LabelCorrelation
        >>> columns, values = torch.tensor([1]), torch.tensor([0.6])
        >>> correlation = LabelCorrelation(torch.tensor([0, 1, 1, 1]), columns, values)
        >>> rated = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0])
        >>> pyseg.ops.correlated_targets(*rated, correlation, num_classes=3)
        tensor([[1.0000, 0.6000, 0.0000]])
    """
    check_arguments(_RATINGS, offsets, classes, scores)
    if len(offsets) < 1:
        raise ArgumentError("offsets: expected shape (B + 1,), found (0,)")
    _check_correlation(correlation, num_classes, scores)
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values(offsets, classes, scores, num_classes)
    _check_absent_evidence(absent_evidence)
    _check_absent(absent, absent_evidence, num_classes, scores)
    targets, _ = _targets(
        offsets, classes, scores, correlation, num_classes, absent_evidence, absent
    )
    return targets


def _targets(
    offsets: Tensor,
    classes: Tensor,
    scores: Tensor,
    correlation: LabelCorrelation | None,
    num_classes: int,
    absent_evidence: float,
    absent: LabelCorrelation | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns y' (B, C), and whether each class is rated (B, C)."""
    batch = offsets.shape[0] - 1
    # Without a size that depends on the offsets, for which a GPU would have to be waited for.
    places = torch.arange(classes.shape[0], device=offsets.device)
    rows = torch.searchsorted(offsets[1:].long().contiguous(), places, right=True)
    classes = classes.long().masked_fill(rows == batch, 0)
    dense = scores.new_zeros(batch + 1, max(num_classes, 1))  # padding is in a row of its own

    def spread(values: Tensor) -> Tensor:
        placed = dense.to(values.dtype).index_put((rows, classes), values)
        return placed[:batch, :num_classes]

    given, rated = spread(scores), spread(torch.ones_like(classes, dtype=torch.bool))
    if correlation is None:
        return given, rated
    evidence = spread(scores + absent_evidence * (1.0 - scores))
    related = evidence @ correlation.dense().to(given.dtype)
    if absent is not None:
        related = related + spread(1.0 - scores) @ absent.dense().to(given.dtype)
    return torch.where(rated, given, related.clamp(max=1.0)), rated


def _check(
    *tensors: Tensor,
    correlation: LabelCorrelation | None,
    rated_weight: float,
    unrated_weight: float,
    absent_evidence: float,
) -> None:
    """Checks types, shapes and devices; the error names the first argument that does not fit."""
    sizes = _OP.check(*tensors)
    logits, offsets, *_ = tensors
    if sizes["B + 1"] != sizes["B"] + 1:
        raise misfit("offsets", "(B + 1,)", (sizes["B"] + 1,), offsets, "logits", logits)
    _check_correlation(correlation, sizes["C"], logits)
    check_at_least("rated_weight", rated_weight, 0.0)
    check_at_least("unrated_weight", unrated_weight, 0.0)
    _check_absent_evidence(absent_evidence)


def _check_absent_evidence(value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ArgumentError(f"absent_evidence: expected a number in [0, 1], found {value}")


def _check_absent(
    absent: LabelCorrelation | None, absent_evidence: float, num_classes: int, like: Tensor
) -> None:
    if absent is not None:
        if absent_evidence:
            raise ArgumentError("absent_evidence: expected none with absent, found both")
        _check_correlation(absent, num_classes, like)


def _check_correlation(
    correlation: LabelCorrelation | None, num_classes: int, like: Tensor
) -> None:
    if correlation is None:
        return
    from pyseg.labels import LabelCorrelation

    if not isinstance(correlation, LabelCorrelation):
        raise TypeError(
            f"correlation: expected a LabelCorrelation, found {type(correlation).__name__}"
        )
    if correlation.num_classes != num_classes:
        raise ArgumentError(
            f"correlation: expected {num_classes} classes, found {correlation.num_classes}"
        )
    check_device("correlation", correlation.values, "the other arguments", like)


def _check_values(offsets: Tensor, classes: Tensor, scores: Tensor, num_classes: int) -> None:
    """Checks the values of tensors in host memory."""
    offsets = offsets.long()  # whose differences may be negative
    size, used = classes.shape[0], int(offsets[-1])
    if int(offsets[0]) != 0 or used > size:
        raise ArgumentError(
            f"offsets: expected 0 to at most {size}, found {int(offsets[0])} to {used}"
        )
    if bool((offsets.diff() < 0).any()):
        row = int((offsets.diff() < 0).int().argmax())
        raise ArgumentError(
            f"offsets: expected no decrease, found {int(offsets[row])} before "
            f"{int(offsets[row + 1])} at row {row}"
        )
    rows = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    classes, scores = classes[:used], scores[:used]
    outside = (classes < 0) | (classes >= num_classes)
    if bool(outside.any()):
        at = int(outside.int().argmax())
        raise ArgumentError(
            f"classes: expected 0 <= class < {num_classes}, found {int(classes[at])} "
            f"in row {rows[at]}"
        )
    keys = (rows * num_classes + classes).sort().values
    if bool((keys.diff() == 0).any()):
        row, wrong = divmod(int(keys[:-1][keys.diff() == 0][0]), num_classes)
        raise ArgumentError(
            f"classes: expected each once in a row, found {wrong} twice in row {row}"
        )
    inside = (scores >= 0) & (scores <= 1)
    if not bool(inside.all()):
        at = int((~inside).int().argmax())
        score = scores[at].detach().to(sum_dtype(scores.dtype)).numpy()  # with all of its digits
        raise ArgumentError(
            f"scores: expected numbers in [0, 1], found {score!s} in row {rows[at]}"
        )


@_OP.fake
def _fake(
    logits: Tensor,
    offsets: Tensor,
    classes: Tensor,
    scores: Tensor,
    correlation_offsets: Tensor | None,
    correlation_columns: Tensor | None,
    correlation_values: Tensor | None,
    needs_grad: bool,
    **weights: float,
) -> tuple[Tensor, Tensor]:
    _check(logits, offsets, classes, scores, correlation=None, **weights)
    grad = logits.new_empty(logits.shape if needs_grad else (0,))
    return logits.new_empty((), dtype=sum_dtype(logits.dtype)), grad


@_BACKWARD.fake
def _backward_fake(grad: Tensor, **_: Any) -> Tensor:
    _BACKWARD.check(grad)
    return grad.new_empty(grad.shape)


@_BACKWARD_IN_PLACE.fake
def _backward_in_place_fake(grad: Tensor, **_: Any) -> None:
    _BACKWARD_IN_PLACE.check(grad)


@_OP.gradient(
    "grad logits",
    constant="grad",
    refused={"scores": "scores", "correlation_values": "correlation_values"},
)
def _gradient(
    grad_output: Tensor, *, needed: dict[str, bool], grad: Tensor, logits: Tensor
) -> dict[str, Tensor]:
    if not needed["logits"]:
        return {}
    twice = torch.is_grad_enabled()  # possibly create_graph=True
    # Not in float16: grad is B times the gradient, see the schema, so the scale is hardly ever 1.
    if not twice and grad.dtype != torch.float16 and _is_read_once(grad_output):
        _BACKWARD_IN_PLACE(grad_output, grad)
        return {"logits": grad}
    return {"logits": _BACKWARD(grad_output, grad, logits if twice else None)}


_BACKWARD.refuse_gradient()
_BACKWARD_IN_PLACE.refuse_gradient()


def _is_read_once(grad_output: Tensor) -> bool:
    """Returns whether this backward is the last to read the saved gradient, and for one result."""
    if type(grad_output) is not Tensor or torch.compiler.is_compiling():
        return False  # traced
    if torch._C._functorch.is_legacy_batchedtensor(grad_output):
        return False  # several, by torch.autograd.functional.jacobian(vectorize=True)
    if torch._C._are_functorch_transforms_active():
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph()  # retain_graph
