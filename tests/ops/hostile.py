"""Calls every operator through torch.ops.pyseg with one invalid argument at a time.

Each call must raise an error that names the problem, or return the result of the operator's
definition. ``python tests/ops/hostile.py`` prints the number of calls, and fails if one did
neither. A call may crash or hang, so the test runs this as a process with a time limit.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyseg
from pyseg.labels import LabelCorrelation
from pyseg.ops.assignment import batch_statistics_reference_
from pyseg.ops.frames import dequantize_reference

SOURCES = str(pyseg._build.SOURCES)  # no error may name the folder of the build
# Misfits that operators may take but that have no definition to compare with: omitted optional
# arguments, frames of any floating dtype, rows without columns, lists with more or less room.
ACCEPTED: dict[str, tuple[str, ...]] = {
    "vlad_aggregate_backward": ("argument 5: None", "argument 6: None", "argument 11: None"),
    "soft_assign_backward": ("argument 3: None", "argument 4: None"),
    "moments": ("argument 0: dimension 0 huge, others empty",),
    "frame_pool_backward": tuple(
        f"argument 2: {text}" for text in ("torch.float64", "torch.float16", "torch.bfloat16")
    ),
}
EPS = 1e-12
B, T, G, F, K, N, H, C = 2, 3, 2, 5, 4, 6, 3, 7


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def valid_calls() -> dict[str, list[list[Any]]]:
    """Returns valid arguments of each operator."""
    ops = torch.ops.pyseg
    vlad = [random(B, T, G, F), random(B, T, G, K), random(B, T, G), random(F, K)]
    norm, row_weights = random(4, G * K) + 0.5, torch.full((B * T,), 1 / (B * T))
    norms: list[list[Any]] = [[None, None], [norm, None], [norm, row_weights]]
    flags = (False, True)
    saved = [ops.vlad_aggregate(*vlad, *some, EPS, False) for some in norms]
    frames = torch.arange(B * T * N, dtype=torch.uint8).view(B, T, N)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    dequantization = 10 * random(3, N)
    pool = [random(B, T, N), random(B, T, G, K), random(G, F, N)]
    recurrence = [random(B, T, 3 * H), random(3 * H, H), random(3 * H)]
    relations = [
        torch.tensor([0, 1, 2, *[2] * (C - 2)]),
        torch.tensor([1, 2]),
        torch.tensor([0.5, 0.6]),
    ]
    rated = [random(B, C), torch.tensor([0, 2, 3]), torch.tensor([0, 3, 1]), random(3)]
    weights = [2.5, 0.1, 0.5, True]
    return {
        "vlad_aggregate": [[*vlad, *some, EPS, False] for some in norms],
        "vlad_aggregate_backward": [
            [random(B, F, K), *vlad, *some, *results, EPS, True, False]
            for some, results in zip(norms, saved, strict=True)
        ],
        "soft_assign": [[*vlad[1:3], *some, by_cluster] for some in norms for by_cluster in flags],
        "soft_assign_backward": [
            [grad, *vlad[1:3], *some]
            for some in norms
            for grad in (random(B, T, G, K), random(B, T, K, G).mT)
        ],
        "batch_statistics_": [
            [random(5, 3), *(random(3) + place for place in range(5)), 0.3, 1e-3, unbiased]
            for unbiased in flags
        ],
        "moments": [[random(5, 3), None], [random(5, 3), torch.full((5,), 0.2)]],
        "rated_bce_with_logits": [
            [*rated, None, None, None, *weights],
            [*rated, *relations, *weights],
        ],
        "rated_bce_with_logits_backward": [[torch.tensor(2.0), random(B, C), None]],
        "dequantize": [
            [frames, None, None, torch.float32],
            [frames, mask, dequantization, torch.float32],
        ],
        "rated_bce_with_logits_backward_": [[torch.tensor(2.0), random(B, C)]],
        "frame_linear": [
            [frames, None, random(F, N), None],
            [frames, mask, random(F, N), random(F), dequantization],
        ],
        "frame_linear_backward": [
            [random(B, T, F), frames, None],
            [random(B, T, F), frames, mask, dequantization],
        ],
        "frame_pool": [[*pool, True], [frames, *pool[1:], False, dequantization]],
        "frame_pool_backward": [
            [random(B, K, F), random(B, G, K), *pool, ops.frame_pool(*pool, True)[2], [True] * 3]
        ],
        "gru_recurrence": [[*recurrence, True]],
        "gru_recurrence_backward": [
            [random(B, T, H), *ops.gru_recurrence(*recurrence, True), recurrence[1]]
        ],
    }


def definitions() -> dict[str, Any]:
    """Returns the operators' definitions in plain PyTorch and float64."""

    def normalize(z: Tensor, norm: Tensor | None) -> Tensor:
        if norm is None:
            return z
        mean, rstd, weight, bias = norm.unflatten(1, z.shape[2:])
        return (z - mean) * rstd * weight + bias

    def soft_assign(
        z: Tensor, attention: Tensor, norm: Any, row_weights: Any, by_cluster: bool = False
    ) -> Tensor:
        if row_weights is not None and norm is None:
            raise ValueError("row_weights without norm")
        pyseg.ops.soft_assign_reference(z, attention)
        return normalize(z, norm).softmax(-1) * attention.unsqueeze(-1)

    def vlad(x, z, attention, centers, norm, row_weights, eps, _):
        pyseg.ops.vlad_aggregate_reference(x, z, attention, centers, eps=eps)
        weights = soft_assign(z, attention, norm, row_weights)
        mass = weights.sum((1, 2))
        v = torch.einsum("btgf,btgk->bfk", x, weights) - centers * mass.unsqueeze(1)
        squares = v.square().sum(1)
        return v * squares.clamp_min(eps).rsqrt().unsqueeze(1), mass, squares

    def rated(logits, offsets, classes, scores, *others):
        *relations, rated_weight, unrated_weight, absent_evidence, _ = others
        correlation = None
        if any(tensor is not None for tensor in relations):
            correlation = LabelCorrelation.__new__(LabelCorrelation)
            correlation.offsets, correlation.columns, values = relations
            correlation.values = values.float()
        return pyseg.ops.rated_bce_with_logits_reference(
            logits,
            offsets,
            classes,
            scores,
            correlation,
            rated_weight=rated_weight,
            unrated_weight=unrated_weight,
            absent_evidence=absent_evidence,
        )

    def linear_backward(
        grad: Tensor, frames: Tensor, mask: Tensor | None, dequantization: Tensor | None = None
    ) -> Tensor:
        weight = torch.zeros(grad.shape[2], frames.shape[2], dtype=grad.dtype).requires_grad_()
        products = pyseg.ops.frame_linear_reference(frames, mask, weight, None, dequantization)
        return torch.autograd.grad(products, weight, grad.detach())[0]

    return {
        "vlad_aggregate": vlad,
        "soft_assign": soft_assign,
        "moments": lambda *args: torch.stack(pyseg.ops.moments_reference(*args)),
        "batch_statistics_": lambda *args: batch_statistics_reference_(*copies(list(args))),
        "rated_bce_with_logits": rated,
        "rated_bce_with_logits_backward": lambda scale, grad, _: scale * grad,
        "dequantize": lambda frames, mask, rows, dtype: dequantize_reference(
            frames, mask, dtype, rows
        ),
        "rated_bce_with_logits_backward_": lambda scale, grad: scale * grad,
        "frame_linear": pyseg.ops.frame_linear_reference,
        "frame_linear_backward": linear_backward,
        "frame_pool": lambda *args: pyseg.ops.frame_pool_reference(*args[:3], *args[4:]),
        "gru_recurrence": lambda *args: pyseg.ops.gru_recurrence_reference(*args[:3]),
    }


def same_values(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields the same numbers in other memory layouts."""
    if tensor.dim() > 1:
        yield "transposed", tensor.mT.contiguous().mT
    if tensor.dim():
        wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
        yield "strided", wide[..., ::2].copy_(tensor)
    yield "with a gradient", tensor.clone().requires_grad_(tensor.is_floating_point())


def other_values(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields tensors of the same kind with other numbers."""
    if tensor.dtype == torch.bool:
        return
    floating = tensor.is_floating_point()
    unsigned = tensor.dtype in (torch.uint8, torch.uint32, torch.uint64)
    values = [math.nan, math.inf, -math.inf, -1.0, 1.0000001, 0.0] if floating else [0, 200]
    if not floating and not unsigned:
        values += [-1, 2**40, 2**63 - 1, -(2**63)]
    for value in values:
        yield f"full of {value}", torch.full_like(tensor, value)
        if tensor.numel() and not unsigned:
            one = tensor.clone()
            one[(0,) * one.dim()] = value
            yield f"first is {value}", one


def misfits(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """Yields misfits: tensors of another device, dtype, shape or layout, and no tensor."""
    yield "on another device", tensor.to("meta")
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
        *(torch.int64, torch.int32, torch.uint8, torch.bool),
    ):
        if dtype != tensor.dtype:
            yield str(dtype), tensor.to(dtype)
    yield "a dimension more", tensor.unsqueeze(0)
    if tensor.dim():
        yield "a dimension less", tensor.select(0, 0)
        yield "flat", tensor.flatten().unsqueeze(0)
        yield "no dimension", tensor.flatten()[0]
    for dim, size in enumerate(tensor.shape):
        yield f"dimension {dim} cut", tensor.narrow(dim, 0, size - 1)
        yield f"dimension {dim} empty", tensor.narrow(dim, 0, 0)
        yield f"dimension {dim} of 1", tensor.narrow(dim, 0, 1)
        yield f"dimension {dim} doubled", torch.stack((tensor, tensor), dim).flatten(dim, dim + 1)
        shape = [*tensor.shape]
        shape[dim] = 2**44
        yield f"dimension {dim} huge", tensor.new_zeros(()).expand(shape)
        shape = [0] * len(shape)
        shape[dim] = 2**62
        yield f"dimension {dim} huge, others empty", tensor.new_zeros(()).expand(shape)
    yield from [("None", None), ("a list", [1.0, 2.0]), ("a number", 3), ("text", "x")]


def scalars(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value, None, "x"]
    if isinstance(value, torch.dtype):
        return [torch.int64, torch.bool, torch.complex64, None, "x"]
    if isinstance(value, int):
        big = 2**63
        return [-big, -1, 0, 1, 64, 2**40, big - 65, big - 64, big - 1, big, None, 1.5]
    if isinstance(value, float):
        return [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-45, 1.0, 1e308, None, "x"]
    return [[], [True], [False] * 3, [True] * 4, None]


def copies(args: list[Any]) -> list[Any]:
    """Returns copies of the arguments, as some operators write to them."""
    return [copy(arg) if isinstance(arg, Tensor) else arg for arg in args]


def copy(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or (0 in tensor.stride() and not tensor.is_contiguous()):
        return tensor
    if tensor.is_contiguous():
        return tensor.clone()
    return tensor.new_empty_strided(tensor.shape, tensor.stride()).copy_(tensor)


def call(op: str, args: list[Any]) -> Any:
    """Returns the results of an operator, or the argument that it has written to."""
    args = copies(args)
    result = getattr(torch.ops.pyseg, op)(*args)
    return args[-1] if result is None else result


def tensors(result: Any) -> list[Tensor]:
    return [
        t
        for t in (result if isinstance(result, (tuple, list)) else [result])
        if isinstance(t, Tensor)
    ]


def forms(result: Any) -> list[tuple[Any, ...]]:
    """Returns the shapes and dtypes of a result."""
    return [(t.shape, t.dtype) for t in tensors(result)]


class Calls:
    """Counts the outcomes of the calls."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.definitions = definitions()

    def check(
        self, op: str, what: str, args: list[Any], *, expected: Any = None, form: Any = None
    ) -> None:
        """Calls `op`, which must return `expected`, or match its definition, or raise.

        The result of an operator without a definition must have the shapes and dtypes of `form`.
        """
        print(f"{op}: {what}", flush=True)
        try:
            result = call(op, args)
        except Exception as error:
            self.counts["refused"] += 1
            text = str(error)
            if expected is not None or SOURCES in text or "INTERNAL ASSERT" in text or not text:
                self.faults.append(f"{op}: {what}: {type(error).__name__}: {text}")
            return
        self.counts["answered"] += 1
        if what.endswith(ACCEPTED.get(op, ())):
            return
        if expected is None and form is not None and op not in self.definitions:
            if forms(result) != forms(form):
                self.faults.append(f"{op}: {what}: {forms(result)}, expected {forms(form)}")
            return
        if expected is None:
            try:
                expected = self.define(op, args)
            except Exception as error:
                self.faults.append(f"{op}: {what}: the definition refuses it: {str(error)[:300]}")
                return
        try:
            for own, other in zip(tensors(result), tensors(expected), strict=False):
                assert own.shape == other.shape, (own.shape, other.shape)
                assert own.device == other.device, own.device
                if own.is_meta:
                    continue
                finite, eps = other.isfinite(), torch.finfo(own.dtype).eps
                assert not own[~finite].isfinite().any(), (own, other)
                torch.testing.assert_close(
                    own[finite].double(), other[finite].double(), rtol=500 * eps, atol=500 * eps
                )
        except (AssertionError, RuntimeError) as error:
            self.faults.append(f"{op}: {what}: {error}")

    def define(self, op: str, args: list[Any]) -> Any:
        if op not in self.definitions:
            raise NotImplementedError("it has no definition of its own")
        wide = [
            a.double() if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args
        ]
        return self.definitions[op](*wide)


def main() -> int:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    calls, valid = Calls(), valid_calls()
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pyseg::")}
    assert names == {f"pyseg::{op}" for op in valid}, names
    for op, variants in valid.items():
        for number, args in enumerate(variants):
            for place, value in enumerate(args):
                what = f"call {number}, argument {place}"

                def put(other: Any, args: list[Any] = args, place: int = place) -> list[Any]:
                    return [*args[:place], other, *args[place + 1 :]]

                base = tensors(call(op, args))
                if not isinstance(value, Tensor):
                    for other in scalars(value) if value is not None else []:
                        some = put(other) if other is False or other == [False] * 3 else args
                        form = tensors(call(op, some))
                        calls.check(op, f"{what}: {other}", put(other), form=form)
                    continue
                for text, other in same_values(value):
                    calls.check(op, f"{what}: {text}", put(other), expected=base)
                for text, other in other_values(value):
                    calls.check(op, f"{what}: {text}", put(other), form=base)
                for text, other in misfits(value):
                    calls.check(op, f"{what}: {text}", put(other))
                if value.dim() and value.is_floating_point():
                    calls.check(op, f"{what}: sparse", put(value.to_sparse()), form=base)
    for fault in calls.faults:
        print("FAULT", fault)
    print(
        f"{sum(calls.counts.values())} calls of {len(valid)} operators: "
        f"{calls.counts['refused']} refused, {calls.counts['answered']} answered, "
        f"{len(calls.faults)} faults"
    )
    return bool(calls.faults)


if __name__ == "__main__":
    sys.exit(main())
