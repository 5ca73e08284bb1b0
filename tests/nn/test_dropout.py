"""Dropout: elements dropped and scaled, by masks distributed like those of `bernoulli_`."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyseg.nn import Dropout
from pyseg.nn.dropout import bernoulli_mask

SHAPE = (40, 101, 50)  # 202,000 elements: a mean of 0/1 is within 0.005 at 4 standard deviations


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_elements_are_dropped_or_scaled(p: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(SHAPE, dtype=torch.float64) + 1
    y = Dropout(p)(x)
    dropped = y == 0
    assert dropped.double().mean().item() == pytest.approx(p, abs=0.005)
    torch.testing.assert_close(y[~dropped], x[~dropped] / (1 - p), rtol=1e-4, atol=0)
    assert (y / x).mean().item() == pytest.approx(1, abs=0.01)


def test_the_factor_is_that_of_the_probability_drawn() -> None:
    """The expected value equals the input although p is rounded."""
    p = 1 - 1.5 / 2**16  # kept: 2 of 2 ** 16 after rounding to even
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(2**20))
    assert set(y.unique().tolist()) == {0.0, 2.0**15}
    assert (y != 0).sum().item() == pytest.approx(32, abs=24)


@pytest.mark.parametrize("p", [0.0, 1e-7, 1 - 1e-7, 1.0])
def test_probabilities_that_round_to_0_or_1_use_torchs_dropout(p: float) -> None:
    x = torch.randn(100, requires_grad=True)
    torch.manual_seed(0)
    y = Dropout(p)(x)
    torch.manual_seed(0)
    assert torch.equal(y, torch.nn.functional.dropout(x, p))
    assert bernoulli_mask(x, p).float().mean().item() == round(p)


def test_gradient_is_that_of_the_mask() -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    y = Dropout(0.5)(x)
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_layout_are_those_of_the_input(dtype: torch.dtype) -> None:
    x = torch.ones(3, 5, 7, dtype=dtype).transpose(0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = Dropout(0.5)(x)
    assert (y.dtype, y.shape, y.stride()) == (dtype, x.shape, x.stride())
    assert set(y.unique().tolist()) == {0.0, 2.0}


def test_only_in_training() -> None:
    x = torch.randn(100)
    assert Dropout(0.5).eval()(x) is x


def test_seeded_by_torch() -> None:
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(Dropout(0.5)(torch.ones(1000)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 0, 2), (7, 9)])
def test_masks_of_any_shape(shape: tuple[int, ...]) -> None:
    mask = bernoulli_mask(torch.empty(shape), 0.5)
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_elements_of_a_mask_are_independent() -> None:
    """Four adjacent elements share one random number: any two of them are independent."""
    torch.manual_seed(0)
    mask = bernoulli_mask(torch.empty(100_000, 8), 0.3).double()
    assert (mask.mean(0) - 0.3).abs().max() < 5 * (0.3 * 0.7 / len(mask)) ** 0.5
    correlation = torch.corrcoef(mask.T)
    for a, b in itertools.combinations(range(8), 2):
        assert abs(correlation[a, b].item()) < 5 / len(mask) ** 0.5


def test_tracing_uses_torchs_dropout() -> None:
    torch._dynamo.reset()
    dropout = Dropout(0.5)
    compiled = torch.compile(dropout, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (40, 70):
        x = torch.randn(2, length, 3)
        torch.manual_seed(1)
        expected = torch.nn.functional.dropout(x, 0.5)
        torch.manual_seed(1)
        assert torch.equal(compiled(x), expected)


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_bad_probability(p: float) -> None:
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        Dropout(p)
