"""Operators in eager mode: what is called past the dispatcher, and checks that ran before."""

from __future__ import annotations

import gc
import weakref
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, func
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyseg.ops import (
    AssignmentNorm,
    frame_linear,
    frame_pool,
    frames,
    gru_recurrence,
    moments,
    soft_assign,
    vlad_aggregate,
)
from pyseg.ops._dispatch import is_reference, plain_operators
from pyseg.ops._op import Passed
from tests.ops.conftest import needs_cpu_ops

FRAMES = torch.tensor([[[0, 9]]], dtype=torch.uint8)


def linear(weight: Tensor) -> Tensor:
    """An operator with a kernel in Python; its gradient of the sum are the values of the frame."""
    return frame_linear(FRAMES, None, weight)


VALUES = linear(torch.eye(2)).flatten().tolist()


class _Overload:
    """The dispatcher's side of an operator, which notes calls."""

    def __init__(self, overload: Any) -> None:
        self._overload = overload
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self._overload(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._overload, name)


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> _Overload:
    overload = _Overload(frames._LINEAR.overload)
    monkeypatch.setattr(frames._LINEAR, "overload", overload)
    return overload


class _Subclass(Tensor):
    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(str(function))
        return super().__torch_function__(function, types, args, kwargs or {})


class _Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_eager_calls_go_past_the_dispatcher(dispatched: _Overload) -> None:
    weight = torch.ones(1, 2, requires_grad=True)
    linear(weight).sum().backward()
    assert weight.grad.tolist() == [VALUES]
    assert not linear(weight.detach()).requires_grad
    with torch.no_grad():
        assert not linear(weight).requires_grad
    assert dispatched.calls == 0


@pytest.mark.parametrize("mode", [_Dispatched, _Functions])
def test_modes_see_the_operator(mode: type) -> None:
    with mode() as active:
        linear(torch.ones(1, 2))
    assert any("frame_linear" in name for name in active.seen)


def test_subclasses_see_the_operator() -> None:
    _Subclass.seen.clear()
    assert isinstance(linear(torch.ones(1, 2).as_subclass(_Subclass)), _Subclass)
    assert any("frame_linear" in name for name in _Subclass.seen)


def test_fake_tensors_take_the_fake() -> None:
    with FakeTensorMode() as mode:
        weight = torch.ones(1, 2)
        found = frame_linear(mode.from_tensor(FRAMES), None, weight)
    assert type(found) is type(weight)
    outside = frame_linear(mode.from_tensor(FRAMES), None, weight)
    assert type(outside) is type(weight)


def test_meta_tensors_take_the_fake(dispatched: _Overload) -> None:
    assert frame_linear(FRAMES.to("meta"), None, torch.ones(1, 2, device="meta")).is_meta
    assert dispatched.calls == 1


def test_traces_hold_the_operator() -> None:
    graph = make_fx(linear)(torch.ones(1, 2)).graph
    assert any("frame_linear" in str(node.target) for node in graph.nodes)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_transforms_see_the_operator(dispatched: _Overload) -> None:
    assert func.grad(lambda weight: linear(weight).sum())(torch.ones(1, 2)).tolist() == [VALUES]
    found = func.vmap(linear)(torch.ones(3, 1, 2))
    torch.testing.assert_close(found.flatten(), torch.full((3,), sum(VALUES)))
    assert dispatched.calls == 2


@needs_cpu_ops
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_gradients_of_a_norm_without_a_node_of_its_own(
    shape: tuple[int, ...], create_graph: bool
) -> None:
    """Eager mode passes by the operators that pack the norm; a mode must not change gradients."""
    torch.manual_seed(0)
    x, attention = torch.randn(2, 4, 2, 3), torch.rand(2, 4, 2)
    row_weights = torch.full((2, 4), 1 / 8)
    mean, variance = moments(x.view(8, 6), row_weights.flatten())
    weight, bias = (torch.randn(shape, requires_grad=True) for _ in range(2))
    norm = AssignmentNorm(mean, variance, weight, bias, row_weights=row_weights)
    grad = torch.randn(x.shape)

    def gradients() -> tuple[Tensor, ...]:
        y = soft_assign(x, attention, norm=norm)
        return torch.autograd.grad(y, (weight, bias), grad, create_graph=create_graph)

    found = gradients()
    with _Dispatched():
        expected = gradients()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad == create_graph
    if create_graph:
        with pytest.raises(RuntimeError, match="soft_assign cannot be differentiated twice"):
            found[0].sum().backward()


def test_passed_checks_are_not_repeated_and_errors_are() -> None:
    calls = []

    def check(*tensors: Tensor | None) -> int:
        calls.append(tensors)
        if tensors[0].dtype == torch.int64:
            raise TypeError("x: expected floating")
        return len(tensors)

    passed, x = Passed(), torch.ones(2)
    assert [passed.check(check, x, None) for _ in range(3)] == [2, 2, 2]
    assert len(calls) == 1
    others = x.double(), torch.ones(3), torch.ones(2, device="meta"), torch.ones(1, 2)
    for number, other in enumerate(others):
        passed.check(check, other, None)
        assert len(calls) == number + 2
    passed.check(check, x, x)
    assert len(calls) == len(others) + 2
    for _ in range(2):
        with pytest.raises(TypeError, match="expected floating"):
            passed.check(check, x.long(), None)
    for _ in range(2):  # a subclass may be anything
        passed.check(check, x.as_subclass(_Subclass), None)
    assert len(calls) == len(others) + 6


def test_passed_checks_are_bounded_and_hold_no_tensor() -> None:
    passed = Passed()
    x = torch.ones(2)
    gone = weakref.ref(x)
    passed.check(lambda x: None, x)
    del x
    gc.collect()
    assert gone() is None
    for size in range(1000):
        passed.check(lambda x: None, torch.empty(size))
    assert len(passed._results) <= Passed._MOST


def test_symbolic_sizes_are_checked_without_the_memory() -> None:
    calls = []
    passed = Passed()

    def traced(x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            passed.check(calls.append, x)
            return x.sum()

        return func.grad(inner)(x)

    make_fx(traced, tracing_mode="symbolic")(torch.ones(3))
    assert len(calls) == 1
    assert passed._results == {}


def test_error_texts_after_a_call_that_passed() -> None:
    x = torch.zeros(1, 2, 3, dtype=torch.uint8)
    for _ in range(2):
        frame_linear(x, None, torch.ones(4, 3))
        with pytest.raises(ValueError, match=r"weight: expected shape \(M, N\) = \(M, 3\)"):
            frame_linear(x, None, torch.ones(4, 2))
        with pytest.raises(TypeError, match="frames: expected uint8, found"):
            frame_linear(x.float(), None, torch.ones(4, 3))


@needs_cpu_ops
def test_a_direct_call_is_left_to_the_dispatcher_where_a_tensor_needs_it() -> None:
    """A negated view holds the opposite numbers, which the dispatcher makes of it."""
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 3, 4), generator=random, dtype=torch.uint8)
    rows, weight = torch.rand(3, 4, generator=random), torch.rand(5, 4, generator=random)
    expected = frame_linear(x, None, weight, None, rows)
    negated = torch._neg_view(-rows)
    torch.testing.assert_close(frame_linear(x, None, weight, None, negated), expected)


@needs_cpu_ops
def test_a_profiler_sees_direct_calls() -> None:
    x, weight = torch.zeros(1, 2, 4, dtype=torch.uint8), torch.ones(5, 4)
    with torch.autograd.profiler.profile() as profile:
        frame_linear(x, None, weight)
    assert "pyseg::dequantize" in {event.name for event in profile.function_events}


class _Calls(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(op))
        return op(*args, **(kwargs or {}))


def test_plain_operators_are_references() -> None:
    weights = torch.full((1, 1, 1, 1), 0.5)

    def compute() -> list[Tensor]:
        z = torch.zeros(1, 1, 1, 2)
        sums = frame_pool(FRAMES, weights, torch.eye(2).unsqueeze(0))
        return [
            linear(torch.eye(2)),
            *sums,
            soft_assign(z, weights[0]),
            vlad_aggregate(z, z, weights[0], torch.eye(2)),
            gru_recurrence(torch.ones(1, 1, 3), torch.ones(3, 1), torch.ones(3)),
        ]

    with _Calls() as called:
        expected = compute()
    assert any("pyseg" in name for name in called.names)
    with pytest.raises(KeyError), plain_operators():
        raise KeyError
    with plain_operators(), _Calls() as called:
        torch.testing.assert_close(compute(), expected)
    assert not any("pyseg" in name for name in called.names)
    assert not is_reference()
