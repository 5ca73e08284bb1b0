"""The comparison of the ops' tests: a wrong value must fail."""

from __future__ import annotations

import pytest
import torch

from tests.ops.conftest import assert_error_is_at_most_twice


@pytest.mark.parametrize("wrong", [12345.0, torch.inf, torch.nan, 2.02])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("overflowing", [[], [1], [0, 1, 2]])
def test_a_wrong_value_is_found_wherever_the_baseline_overflows(overflowing, place, wrong):
    exact = torch.tensor([1.0, -1.5, 2.0], dtype=torch.float64)
    right, baseline = exact.half(), exact.half()
    baseline[overflowing] = torch.inf
    assert_error_is_at_most_twice(["x"], [right], [baseline], [exact])
    planted = right.clone()
    planted[place] = wrong
    with pytest.raises(AssertionError):
        assert_error_is_at_most_twice(["x"], [planted], [baseline], [exact])
