"""Statistics over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyseg.reproduce import (
    Estimate,
    differences,
    gaps_closed,
)

from .conftest import outcomes_of


def test_estimates() -> None:
    one = Estimate.of([0.25])
    assert (one.mean, one.text(".3f"), one.is_clear) == (0.25, "0.250", False)
    some = Estimate.of([1.0, 2.0, 6.0])
    assert some.error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert some.text("+.2f") == "+3.00 ± 1.53"
    assert not some.is_clear
    assert Estimate.of([-1.0, -1.1, -0.9]).is_clear
    over_classes = Estimate(0.5, 0.1, 0.2)
    assert over_classes.text("+.2f") == "+0.50 ± 0.10 ± 0.20"
    assert over_classes.is_clear
    assert not Estimate(0.44, 0.1, 0.2).is_clear
    assert Estimate(0.44, math.nan, 0.2).is_clear


def test_rows_are_compared_seed_by_seed() -> None:
    outcomes = outcomes_of([[0.1], [0.3]], [[0.2], [0.4]], [[0.5], [0.7]])
    assert differences(outcomes, "map")[1] == pytest.approx((0.1, 0.0, 0.0))
    closed = gaps_closed(outcomes, "map")
    assert closed is not None
    assert [gap.mean for gap in closed] == pytest.approx([0.0, 0.25, 1.0])
    # A ceiling that is none, and one seed, of which nobody knows.
    assert gaps_closed(outcomes_of([[0.1], [0.3]], [[0.2], [0.2]]), "map") is None
    assert gaps_closed(outcomes_of([[0.1]], [[0.2]]), "map") is not None


def test_errors_over_classes_are_those_of_classes_drawn_anew() -> None:
    """That of a mean of n values is their deviation divided by the root of n."""
    generator = np.random.default_rng(0)
    first = generator.random((3, 400))
    gain = generator.normal(0.1, 0.2, 400)
    first[:, :50] = np.nan  # these do not count
    outcomes = outcomes_of(first, first + gain, first + 2 * gain)
    found = differences(outcomes, "map")[1]
    assert found.mean == pytest.approx(gain[50:].mean())
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.class_error == pytest.approx(gain[50:].std(ddof=1) / math.sqrt(350), rel=0.1)
    closed = gaps_closed(outcomes, "map")
    assert closed is not None
    assert closed[1] == pytest.approx((0.5, 0.0, 0.0))  # for every class alike
