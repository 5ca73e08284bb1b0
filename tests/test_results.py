"""Typed results: what they say, and what a run's log gives back."""

from __future__ import annotations

import pytest

from pyseg import results
from pyseg.results import LabelResult, RatedResult

RATED = RatedResult(0.5, 0.25, classes=1, all_classes=2, rated=4, positives=3)
LABELS = LabelResult(0.5, 0.75, 0.625, 0.25, classes=2, examples=3)


@pytest.mark.parametrize("result", [RATED, LABELS], ids=["rated", "labels"])
@pytest.mark.parametrize("more", [{}, {"ndcg": 0.125}])
def test_a_log_line_gives_the_result_back(result: results.Result, more: dict[str, float]) -> None:
    result = type(result)(**result.values(), more=more)
    line = {"stage": "evaluate", "after": "finetune", "step": 7, **result.values()}
    assert results.parse(line) == result
    assert result.describe().endswith("; ndcg 0.1250" if more else ")")


def test_training_keeps_weights_by_the_score() -> None:
    assert (RATED.score, RATED.title) == (0.5, "MAP@100k")
    assert (LABELS.score, LABELS.title) == (0.5, "GAP@20")


def test_ratings_without_a_positive_are_told() -> None:
    result = RatedResult(float("nan"), 0.0, classes=0, all_classes=2, rated=4, positives=0)
    assert "none of the 4 ratings is positive" in result.describe()
