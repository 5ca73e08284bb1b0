"""gru_recurrence against PyTorch's GRU and its own reference, and in every mode of use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg.ops import gru_recurrence, gru_recurrence_reference


def make(
    batch: int = 3, length: int = 4, size: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + 10 * length)
    shapes = (batch, length, 3 * size), (3 * size, size), (3 * size,)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tuple(value.to(dtype).requires_grad_() for value in values)  # type: ignore[return-value]


def with_gradients(function, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    states = function(*inputs)
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    return [states, *torch.autograd.grad((states * weights).sum(), inputs)]


@pytest.mark.parametrize("function", [gru_recurrence, gru_recurrence_reference])
@pytest.mark.parametrize("length", [1, 5])
def test_it_is_the_cell_of_pytorch(function, length: int) -> None:
    """Values, and gradients of every parameter and of the input."""
    gru = nn.GRU(3, 2, batch_first=True).double()
    x = torch.randn(4, length, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, *gru.parameters())

    def own(x, weight_ih, weight_hh, bias_ih, bias_hh):
        return function(functional.linear(x, weight_ih, bias_ih), weight_hh, bias_hh)

    expected = with_gradients(lambda x, *_: gru(x)[0], inputs)
    torch.testing.assert_close(with_gradients(own, inputs), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_its_reference(shape: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = make(*shape, dtype=dtype)
    torch.testing.assert_close(
        with_gradients(gru_recurrence, inputs), with_gradients(gru_recurrence_reference, inputs)
    )
    with torch.no_grad():
        assert torch.equal(gru_recurrence(*inputs), gru_recurrence(*make(*shape, dtype=dtype)))


def test_a_traced_reference_is_a_loop_over_any_number_of_frames() -> None:
    class Recurrence(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return gru_recurrence_reference(*inputs)

    inputs = make(dtype=torch.float32)
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    with torch.no_grad():
        program = torch.export.export(Recurrence(), inputs, dynamic_shapes=((free, None, None),))
        for shape in ((3, 4), (1, 1), (2, 7)):
            gates = make(*shape, dtype=torch.float32)[0], *inputs[1:]
            torch.testing.assert_close(program.module()(*gates), gru_recurrence(*gates))
    names = [str(node.target) for node in program.graph.nodes]
    assert "scan" in names
    assert not any("pyseg" in name for name in names)


@pytest.mark.parametrize("function", [gru_recurrence, gru_recurrence_reference])
def test_no_frames(function) -> None:
    assert function(*make(3, 0)).shape == (3, 0, 2)


def test_gradients_are_those_of_the_values() -> None:
    assert torch.autograd.gradcheck(gru_recurrence, make())


def test_second_derivatives_are_those_of_the_reference_only() -> None:
    inputs = make()

    def gradient(function) -> Tensor:
        return torch.autograd.grad(function(*inputs).sum(), inputs[0], create_graph=True)[0]

    torch.autograd.grad(gradient(gru_recurrence_reference).sum(), inputs)
    with pytest.raises(RuntimeError, match=r"use pyseg\.ops\.gru_recurrence_reference"):
        torch.autograd.grad(gradient(gru_recurrence).sum(), inputs)


def test_strided_gates() -> None:
    gates, *weights = make(3, 4)
    expected = gru_recurrence(gates, *weights)
    wide = torch.cat((gates, gates), -1)[..., :6]
    assert not wide.is_contiguous()
    assert torch.equal(gru_recurrence(wide, *weights), expected)


def test_nothing_is_saved_without_a_gradient() -> None:
    op, inputs = torch.ops.pyseg.gru_recurrence.default, make()
    with torch.no_grad():
        assert op(*inputs, True)[1].shape == (3, 4, 8)
        assert op(*inputs, False)[1].numel() == 0


def test_schema_and_tracing() -> None:
    for keep in (True, False):
        inputs = make() if keep else tuple(tensor.detach() for tensor in make())
        torch.library.opcheck(torch.ops.pyseg.gru_recurrence.default, (*inputs, keep))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_states_stay_exact_under_autocast(dtype: torch.dtype) -> None:
    """300 states in sequence: bfloat16 gates, but float32 states."""
    gates, weight, bias = (tensor.detach() for tensor in make(2, 300, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        states = gru_recurrence(gates.to(dtype), weight.to(dtype), bias.to(dtype))
    expected = gru_recurrence_reference(
        *(tensor.to(dtype).double() for tensor in (gates, weight, bias))
    )
    assert states.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(states.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("function", [gru_recurrence, gru_recurrence_reference])
def test_checks_its_arguments(function) -> None:
    gates, weight, bias = make()
    with pytest.raises(TypeError, match="gates: expected a Tensor, found list"):
        function([], weight, bias)
    with pytest.raises(ValueError, match=r"weight: expected shape \(3H, H\), found \(6,\)"):
        function(gates, bias, bias)
    with pytest.raises(TypeError, match=r"weight: expected torch\.float64 to fit gates"):
        function(gates, weight.float(), bias)
    with pytest.raises(ValueError, match=r"weight: expected .* \(5, H\) to fit gates \(3, 4, 5\)"):
        function(gates[..., :5], weight, bias)
    with pytest.raises(ValueError, match=r"bias: expected .* \(6,\) to fit gates .* found \(3,\)"):
        function(gates, weight, bias[:3])
