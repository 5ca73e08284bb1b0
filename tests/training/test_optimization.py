"""Steps of the optimizer: the learning rate of each parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyseg import models
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import Example, collate
from pyseg.training import Loss
from pyseg.training.optimization import Optimization

SMALL = {
    "head": "gcn",
    "hidden_size": 4,
    "node_size": 3,
    "gcn_size": 4,
    "bias": True,
    "dropout": 0.0,
}


def make(**options: object) -> Optimization:
    torch.manual_seed(0)
    model = models.create("mlp", num_classes=3, **(SMALL | options))
    return Optimization(model, Loss(), StageConfig(1, 1e-3, ema=0.5), TrainConfig())


def batch() -> tuple[Tensor, ...]:
    random = np.random.default_rng(0)
    examples = [
        Example(f"v{i}", random.integers(0, 256, (5, 1152), np.uint8), np.array([i]), np.ones(1))
        for i in range(3)
    ]
    return collate(examples).tensors


def first_step(optimization: Optimization) -> dict[str, float]:
    """Returns by how much each parameter's first step changes its numbers, at most."""
    model = optimization._model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimization.step(*batch())
    return {
        name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("on_device", [False, True])
def test_a_module_may_ask_for_smaller_steps(on_device: bool) -> None:
    optimization = make()
    factors = optimization._model.head.learning_rate_factors()
    assert min(factors.values()) < 0.5
    if on_device:
        optimization.keep_rate_on_device()
    optimization.set_rate(1e-2)
    for name, change in first_step(optimization).items():  # Adam's first step is the rate
        expected = 1e-2 * factors.get(name.removeprefix("head."), 1.0)
        assert change == pytest.approx(expected, rel=1e-3), name


def test_the_first_rate_is_that_of_the_stage() -> None:
    assert first_step(make(step_share=None))["head.second"] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("on_device", [False, True])
def test_resumes_with_the_factors(on_device: bool) -> None:
    straight, stopped, resumed = make(), make(), make()
    if on_device:
        resumed.keep_rate_on_device()
    rates = (1e-2, 5e-3, 2e-3)
    for rate in rates:
        straight.set_rate(rate)
        straight.step(*batch())
    stopped.set_rate(rates[0])
    stopped.step(*batch())
    random = torch.get_rng_state()
    resumed.restore(stopped.state())
    assert torch.equal(torch.get_rng_state(), random)
    for rate in rates[1:]:
        resumed.set_rate(rate)
        resumed.step(*batch())
    for (name, a), (_, b) in zip(
        straight._model.named_parameters(), resumed._model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=name)
