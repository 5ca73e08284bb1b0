"""Which parameters learn at which rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyseg.nn import OwnLearningRates, learning_rate_groups


class Slow(nn.Module):
    """A module with factors of its own parameters, also of those in its parts."""

    def __init__(self, **factors: float) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(2))
        self.part = nn.Linear(2, 2)
        self._factors = {key.replace("_", "."): value for key, value in factors.items()}

    def learning_rate_factors(self) -> dict[str, float]:
        return self._factors


def test_parameters_by_factor() -> None:
    slow = Slow(own=0.25, part_bias=0.5)
    model = nn.Sequential(nn.Linear(2, 2), slow, nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert isinstance(slow, OwnLearningRates)
    assert not isinstance(model, OwnLearningRates)
    groups = learning_rate_groups(model)
    assert [factor for factor, _ in groups] == [1.0, 0.25, 0.5]
    (_, rest), (_, own), (_, bias) = groups
    assert [id(p) for p in own + bias] == [id(slow.own), id(slow.part.bias)]
    others = [p for p in model.parameters() if p is not slow.own and p is not slow.part.bias]
    assert [id(p) for p in rest] == [id(p) for p in others]


def test_shared_parameters_are_in_one_group() -> None:
    slow = Slow(own=0.25)
    slow.part.bias = slow.own
    groups = learning_rate_groups(nn.Sequential(slow, slow))
    assert [(factor, len(parameters)) for factor, parameters in groups] == [(1.0, 1), (0.25, 1)]


def test_a_model_of_one_rate_has_one_group() -> None:
    assert [factor for factor, _ in learning_rate_groups(nn.Linear(2, 2))] == [1.0]
    everything = Slow(own=0.5, part_weight=0.5, part_bias=0.5)
    assert [factor for factor, _ in learning_rate_groups(everything)] == [0.5]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"owm": 0.5}, r"learning_rate_factors: 1\.owm: expected a parameter, found none of that"),
        ({"own": 0.0}, r"1\.own: expected a finite number above 0, found 0\.0"),
        (
            {"part_bias": float("nan")},
            r"1\.part\.bias: expected a finite number above 0, found nan",
        ),
    ],
)
def test_bad_factors(factors: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning_rate_groups(nn.Sequential(nn.Linear(2, 2), Slow(**factors)))
