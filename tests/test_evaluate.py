from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from pyseg import _cli
from pyseg.data import Example
from pyseg.evaluate import Scores, describe, label_metrics, rated_metrics, score
from pyseg.metrics import map_at_k


class Listed(IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


class Mean(nn.Module):
    """Logits are the means of the valid frames."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, frames, num_frames):
        assert not self.training
        return self.scale * frames.float().sum(1) / num_frames.unsqueeze(1)


def example(name, length, classes, scores):
    frames = np.full((length, 3), length, np.uint8)
    return Example(name, frames, np.array(classes, np.int64), np.array(scores, np.float32))


def test_scores_keep_order_and_ragged_ratings_over_batches():
    examples = [example("a", 1, [0], [1]), example("b", 4, [], []), example("c", 2, [2, 1], [0, 1])]
    model = Mean().train()
    result = score(model, Listed(examples), batch_size=2)
    assert model.training
    assert result.logits.tolist() == [[1.0] * 3, [4.0] * 3, [2.0] * 3]
    assert result.offsets.tolist() == [0, 1, 1, 3]
    assert result.classes.tolist() == [0, 2, 1]
    assert result.relevance.tolist() == [1, 0, 1]


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(_cli.UserError, match="no example"):
        score(Mean(), Listed([]))


def test_rated_metrics_count_classes_without_a_positive_or_not():
    # Class 0: AP = (1/1 + 2/3) / 2; class 1 is rated once, negative; class 2 never.
    result = map_at_k([0, 0, 0, 1], [3, 2, 1, 9], [1, 0, 1, 0], num_classes=3)
    found = rated_metrics(result)
    assert found["map"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["map_all_classes"] == pytest.approx((1 + 2 / 3) / 6)
    assert rated_metrics(result, 2)["map_all_classes"] == pytest.approx((1 + 2 / 3) / 4)
    assert (found["classes"], found["rated"], found["positives"]) == (1, 4, 2)
    assert "MAP@100k 0.8333" in describe(found)
    assert "0.2778 over all 3" in describe(found)


def test_label_metrics():
    logits = np.array([[3, 1, -5], [-1, 2, 1]], np.float32)
    scores = Scores(logits, np.array([0, 2, 3]), np.array([0, 1, 2]), np.ones(3, np.float32))
    result = label_metrics(scores)
    # Video 0: labels 0 and 1 come first and second. Video 1: label 2 comes second.
    assert result["hit_at_1"] == pytest.approx(0.5)
    assert result["perr"] == pytest.approx(0.5)
    # All six in order: 3 hit, 2 miss, 1 hit (video 0), 1 hit (video 1; a tie), ...
    assert result["gap"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert result["map"] == pytest.approx(np.mean([1, 1 / 2, 1]))
    assert "GAP@20" in describe(result)
