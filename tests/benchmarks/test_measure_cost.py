"""The exponent of cost curves, and that what is too noisy has none."""

from __future__ import annotations

import math

import pytest
from measure_cost import SIZES, Cost, Curve, tables


def curve(power: float, start: float = 3.0) -> Curve:
    costs = [
        Cost(size, start + 0.3 * (size / SIZES[0]) ** power, 1e8 + 2e3 * size) for size in SIZES
    ]
    return Curve("train", [round(10 * size) for size in SIZES], costs)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_is_that_of_the_time_without_start_up(power: float) -> None:
    assert curve(power).exponent == pytest.approx(power, abs=0.06)


def test_cost_of_an_example() -> None:
    linear = curve(1.0)
    assert linear.seconds == pytest.approx(0.3)
    assert linear.bytes == pytest.approx(200)
    assert math.isnan(curve(0.0).exponent)
    assert "| train, 10 to 1,000 | 3.3 s |" in tables([linear])
