"""The answers that the model doubts most; see `rank_doubts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg.errors import ArgumentError
from pyseg.rate.learner import Beliefs
from pyseg.rate.pool import Pool
from pyseg.rate.stopping import calibrate

LEAST_ANSWERS = 20
"""The answers from which on the model's doubts are worth anything."""

_PRIOR = 5.0  # answers of the mean over all classes that a class's own mean is mixed with
_FEWEST, _SHARE = 5, 0.1  # answers to look at again: at least, and of all at most


class Doubt(NamedTuple):
    """An answer, and how much the model doubts it.

    Attributes:
        answer: The number of the answer.
        segment: Its segment.
        label: Its class.
        score: Its score.
        confidence: The probability that a model which learned from other videos gives the answer.
        doubt: The log odds that the answer is wrong, see `rank_doubts`.
    """

    answer: int
    segment: int
    label: int
    score: float
    confidence: float
    doubt: float


def rank_doubts(pool: Pool, beliefs: Beliefs) -> list[Doubt]:
    """Ranks answers by how much the model doubts them, the most doubted first.

    This is the self-confidence of confident learning (Northcutt, Jiang and Chuang, "Confident
    Learning: Estimating Uncertainty in Dataset Labels", 2021): the probability of an answer by a
    model that has not seen its video, calibrated by class. It is normalised by the mean
    probability of the same answers about the same class, so that not every "yes" about a rare class
    is doubted: half of its log odds are subtracted. All of them would find more of the oversights
    of a class, but fewer of slips, which hit all answers alike. Answers on which raters disagree
    are left out.

    Args:
        pool: The segments.
        beliefs: The beliefs, with cross-fitting.

    Raises:
        pyseg.errors.ArgumentError: There are no cross-fitted logits.
    """
    answers = beliefs.answers
    if len(beliefs.held_out) != len(answers):
        raise ArgumentError("beliefs: expected cross-fitted logits, found none")
    yes = answers.scores > 0.5
    calibration = calibrate(pool, beliefs)
    logits = beliefs.held_out.astype(np.float64)
    logits = logits * calibration.slopes[answers.labels] + calibration.biases[answers.labels]
    confidence = 1 / (1 + np.exp(np.clip(np.where(yes, -logits, logits), -60, 60)))
    doubt = _log_odds(_expected(answers.labels, yes, confidence)) / 2 - _log_odds(confidence)
    order = np.argsort(-doubt, kind="stable")
    return [
        Doubt(
            answer,
            int(answers.segments[answer]),
            int(answers.labels[answer]),
            float(answers.scores[answer]),
            float(confidence[answer]),
            float(doubt[answer]),
        )
        for answer in order[answers.scores[order] != 0.5].tolist()
    ]


def _log_odds(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def _expected(
    labels: npt.NDArray[np.int64], yes: npt.NDArray[np.bool_], confidence: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the mean confidence in the same answers about the same class, (A,).

    The few answers of a class are helped out by those of all.
    """
    expected = np.empty(len(labels))
    for said in (False, True):
        of_all = yes == said
        if not of_all.any():
            continue
        overall = confidence[of_all].mean()
        for label in np.unique(labels[of_all]).tolist():
            rows = np.flatnonzero(of_all & (labels == label))
            total = confidence[rows].sum() + _PRIOR * overall
            expected[rows] = total / (len(rows) + _PRIOR)
    return expected


def worth_a_look(doubts: Sequence[Doubt]) -> list[Doubt]:
    """Returns the doubts that justify a second look, the greatest first.

    They are the answers that the model finds less likely than their opposite; at least a few, and
    at most a tenth of all.

    Args:
        doubts: From `rank_doubts`.
    """
    most = max(_FEWEST, int(len(doubts) * _SHARE))
    against = sum(doubt.confidence < 0.5 for doubt in doubts[:most])
    return list(doubts[: max(_FEWEST, against)])
