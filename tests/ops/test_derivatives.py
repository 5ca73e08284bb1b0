"""Every kind of derivative that torch has, of every op and every input.

Each equals that of the reference, or raises an error that names it; none is silently zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian

from pyseg import _ext, ops
from pyseg.labels import LabelCorrelation
from pyseg.ops import AssignmentNorm
from tests.ops.conftest import needs_cpu_ops
from tests.ops.hostile import valid_calls

Function = Callable[..., Tensor]

pytestmark = [
    needs_cpu_ops,
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # vmap's loops
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own
]


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(shape, dtype=torch.float64, generator=generator)


class Case(NamedTuple):
    op: Function
    reference: Function
    inputs: dict[str, Tensor]


FEATURES = {"features": random(1, 2, 2, 3)}
ASSIGNMENT = {"assignment": random(1, 2, 2, 2), "attention": random(1, 2, 2)}
AFFINE = {"weight": random(4), "bias": random(2, 2)}
STATISTICS = {"mean": random(4), "variance": random(4) + 0.5}
ROW_WEIGHTS = {"row_weights": torch.tensor([[0.25, 0.75]], dtype=torch.float64)}
FRAMES = torch.arange(6, dtype=torch.uint8).view(1, 2, 3)


def case(
    name: str, inputs: dict[str, Tensor], wrap: Callable[[Function, Function], Function]
) -> Case:
    """Returns an op and its reference as functions of all inputs with one result."""
    reference = getattr(ops, f"{name}_reference")
    return Case(
        wrap(getattr(ops, name), ops.moments), wrap(reference, ops.moments_reference), inputs
    )


def plain(function: Function, _: Function) -> Function:
    return function


def flat(function: Function, _: Function) -> Function:
    """Concatenates all results."""
    return lambda *inputs: torch.cat([result.flatten() for result in function(*inputs)])


def with_constants(function: Function, _: Function) -> Function:
    def call(*inputs: Tensor) -> Tensor:
        return function(*inputs[:-4], norm=AssignmentNorm(*inputs[-4:]))

    return call


def with_statistics(function: Function, moments: Function) -> Function:
    def call(*inputs: Tensor) -> Tensor:
        *others, weight, bias, row_weights = inputs
        columns = others[0 if len(others) == 2 else 1].flatten(0, 1).flatten(1)
        norm = AssignmentNorm(
            *moments(columns, row_weights.flatten()), weight, bias, row_weights=row_weights
        )
        return function(*others, norm=norm)

    return call


def with_frames(function: Function, _: Function) -> Function:
    return lambda weight, bias: function(FRAMES, None, weight, bias)


def with_ratings(function: Function, _: Function) -> Function:
    offsets, classes = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
    rows, columns = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([1, 2, 3])

    def call(logits: Tensor, scores: Tensor, values: Tensor) -> Tensor:
        correlation = LabelCorrelation(rows, columns, torch.full((3,), 0.5))
        correlation.values = values.float()
        return function(logits, offsets, classes, scores, correlation, absent_evidence=0.3)

    return call


CASES = {
    "vlad_aggregate": case(
        "vlad_aggregate", {**FEATURES, **ASSIGNMENT, "centers": random(3, 2)}, plain
    ),
    "vlad_aggregate, constants": case(
        "vlad_aggregate",
        {**FEATURES, **ASSIGNMENT, "centers": random(3, 2), **STATISTICS, **AFFINE},
        with_constants,
    ),
    "vlad_aggregate, statistics": case(
        "vlad_aggregate",
        {**FEATURES, **ASSIGNMENT, "centers": random(3, 2), **AFFINE, **ROW_WEIGHTS},
        with_statistics,
    ),
    "soft_assign": case("soft_assign", ASSIGNMENT, plain),
    "soft_assign, constants": case(
        "soft_assign", {**ASSIGNMENT, **STATISTICS, **AFFINE}, with_constants
    ),
    "soft_assign, statistics": case(
        "soft_assign", {**ASSIGNMENT, **AFFINE, **ROW_WEIGHTS}, with_statistics
    ),
    "moments": case("moments", {"x": random(3, 2), "row_weights": random(3)}, flat),
    "frame_linear": case("frame_linear", {"weight": random(2, 3), "bias": random(2)}, with_frames),
    "frame_pool": case(
        "frame_pool",
        {"frames": random(1, 2, 3), "weights": random(1, 2, 2, 2), "maps": random(2, 2, 3)},
        flat,
    ),
    "gru_recurrence": case(
        "gru_recurrence",
        {"gates": random(2, 2, 6), "weight": random(6, 2), "bias": random(6)},
        plain,
    ),
    "rated_bce_with_logits": case(
        "rated_bce_with_logits",
        {"logits": random(2, 4), "scores": random(3), "values": random(3)},
        with_ratings,
    ),
}


def weighted(y: Tensor) -> Tensor:
    return (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)).sum()


def backward(f: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(weighted(f(x)), x, materialize_grads=True)[0]


def double_backward(f: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(weighted(f(x)), x, create_graph=True, materialize_grads=True)
    if not first.requires_grad:  # it is constant
        return torch.zeros_like(x)
    return torch.autograd.grad(first.square().sum(), x, materialize_grads=True)[0]


def dual_numbers(f: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x))))
        tangent = result.tangent
        return torch.zeros_like(result.primal) if tangent is None else tangent


def jvp(f: Function, x: Tensor) -> Tensor:
    return func.jvp(f, (x,), (torch.ones_like(x),))[1]


def gradient(f: Function) -> Function:
    return func.grad(lambda x: weighted(f(x)))


KINDS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "backward": backward,
    "double backward": double_backward,
    "several backward": lambda f, x: jacobian(f, x, vectorize=True),
    "dual numbers": dual_numbers,
    "dual numbers, several": lambda f, x: jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "grad": lambda f, x: gradient(f)(x),
    "vjp": lambda f, x: func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": jvp,
    "jacrev": lambda f, x: func.jacrev(f)(x),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "hessian": lambda f, x: func.hessian(lambda x: weighted(f(x)))(x),
    "forward over reverse": lambda f, x: jvp(gradient(f), x),
    "reverse over forward": lambda f, x: gradient(lambda x: jvp(f, x))(x),
    "reverse over reverse": lambda f, x: gradient(gradient(f))(x),
    "vmap": lambda f, x: func.vmap(f)(torch.stack((x, x / 2))),
    "vmap of grad": lambda f, x: func.vmap(gradient(f))(torch.stack((x, x / 2))),
}
# Kinds that an op must support; it may refuse all others.
GIVEN = {"backward", "several backward", "grad", "vjp", "jacrev", "vmap", "vmap of grad"}
NOT_GIVEN = {("row_weights", kind) for kind in GIVEN - {"vmap"}}
# The reference reads scores to check that they lie in [0, 1], and writes the values to a matrix.
NO_REFERENCE = {(name, kind) for name in ("scores", "values") for kind in ("vmap", "vmap of grad")}

REFUSED = r"(cannot be differentiated twice|has no .*): use pyseg\.ops\.\w+_reference for"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in CASES for argument in CASES[name].inputs]
)
def test_is_that_of_the_reference_or_refused(name: str, argument: str, kind: str) -> None:
    op, reference, inputs = CASES[name]

    def derivative(function: Function) -> Tensor:
        def of_one(x: Tensor) -> Tensor:
            return function(*(inputs | {argument: x}).values())

        return KINDS[kind](of_one, inputs[argument])

    if (argument, kind) in NO_REFERENCE:
        with pytest.raises(RuntimeError, match="vmap"):
            derivative(reference)
        return
    expected = derivative(reference)
    assert expected.isfinite().all()
    given = kind in GIVEN and (name == "moments" or (argument, kind) not in NOT_GIVEN)
    try:
        found = derivative(op)
    except RuntimeError as error:
        refusal = str(error)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        return
    assert not given, refusal
    assert re.search(REFUSED, refusal), refusal


def test_every_op_has_a_case() -> None:
    with_reference = {n.removesuffix("_reference") for n in ops.__all__ if n.endswith("_reference")}
    assert with_reference == {name.split(",")[0] for name in CASES}


def raw_inputs() -> list[tuple[str, int, int]]:
    """Returns every floating tensor argument of torch.ops.pyseg: op, call and position."""
    return [
        (op, call, place)
        for op, calls in valid_calls().items()
        for call, args in enumerate(calls)
        for place, value in enumerate(args)
        if isinstance(value, Tensor) and value.is_floating_point()
    ]


@pytest.mark.parametrize(("op", "call", "place"), raw_inputs() if _ext.HAS_CPU_OPS else [])
def test_operators_refuse_forward_mode_themselves(op: str, call: int, place: int) -> None:
    args = valid_calls()[op][call]

    def of_one(x: Tensor) -> object:
        return getattr(torch.ops.pyseg, op)(*args[:place], x, *args[place + 1 :])

    public = op.removesuffix("_").removesuffix("_backward")
    text = f"{public} has no forward-mode derivative: use pyseg"
    with pytest.raises(RuntimeError, match=text), forward_ad.dual_level():
        of_one(forward_ad.make_dual(args[place], torch.ones_like(args[place])))
    with pytest.raises(RuntimeError, match=text):
        func.jvp(of_one, (args[place],), (torch.ones_like(args[place]),))


@pytest.mark.parametrize(("place", "name"), [(3, "scores"), (6, "correlation_values")])
def test_the_raw_loss_refuses_gradients_that_it_lacks(place: int, name: str) -> None:
    args = valid_calls()["rated_bce_with_logits"][1]
    args[place].requires_grad_()
    loss, _ = torch.ops.pyseg.rated_bce_with_logits(*args)
    with pytest.raises(RuntimeError, match=f"rated_bce_with_logits has no gradient of {name}: use"):
        loss.backward()
