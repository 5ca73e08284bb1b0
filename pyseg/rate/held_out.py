"""How well the model predicts answers that it has not learned from; see `held_out_score`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyseg.rate.learner import Beliefs
from pyseg.rate.pool import Pool
from pyseg.rate.questions import Answers
from pyseg.rate.views import HeldOutView

LEAST = 5
"""The answers yes, and the answers no, that a score is worth telling from."""

_SAMPLES = 200


def held_out_score(pool: Pool, beliefs: Beliefs, *, seed: int = 0) -> HeldOutView | None:
    """Returns the mean average precision of cross-fitted logits on the answers drawn at random.

    Other answers are no sample of all segments, so they would say something else. The mean is over
    the classes with an answer yes and one no. Its standard error is from a bootstrap of videos. A
    few answers are ranked well by chance too: ``metric`` tells the score of a random order.

    Args:
        pool: The segments.
        beliefs: The beliefs, with cross-fitting.
        seed: The seed of the bootstrap.

    Returns:
        The score; None if there are too few answers yes or no.
    """
    answers = beliefs.answers
    used = counted(answers)
    labels, yes = answers.labels[used], answers.scores[used] > 0.5
    if not len(beliefs.held_out) or min(yes.sum(), (~yes).sum()) < LEAST:
        return None
    logits, both = beliefs.held_out[used], np.unique(labels)
    videos = np.unique(pool.videos[answers.segments[used]], return_inverse=True)[1]
    rng, count = np.random.default_rng(seed), int(videos.max()) + 1
    weights = rng.multinomial(count, np.full(count, 1 / count), _SAMPLES)
    weights = np.concatenate((np.ones((1, count), weights.dtype), weights))  # first, as they are
    scores, chances = [], []
    for label in both.tolist():
        rows = np.flatnonzero(labels == label)
        rows = rows[np.lexsort((yes[rows], -logits[rows]))]  # of equal logits, no first
        scores.append(_precisions(yes[rows], weights[:, videos[rows]]))
        chances.append(by_chance(int(yes[rows].sum()), len(rows)))
    drawn = np.stack(scores)
    drawn = drawn[:, np.isfinite(drawn).any(0)]  # without samples that have no yes or no no
    means = np.nanmean(drawn, axis=0)
    return HeldOutView(
        score=float(means[0]),
        error=float(np.std(means[1:])),
        answers=len(labels),
        metric=(
            f"mean average precision over {len(both)} of {len(pool.class_names)} classes; a random "
            f"order has {np.mean(chances):.2f}"
        ),
    )


def counted(answers: Answers) -> npt.NDArray[np.bool_]:
    """Returns which answers (A,) the score is measured on.

    They are those drawn at random about classes of which such an answer is yes, and another no.
    """
    chosen = answers.random & (answers.scores != 0.5)
    labels, yes = answers.labels, answers.scores > 0.5
    found: npt.NDArray[np.bool_] = (
        chosen & np.isin(labels, labels[chosen & yes]) & np.isin(labels, labels[chosen & ~yes])
    )
    return found


def _precisions(
    yes: npt.NDArray[np.bool_], weights: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Returns the average precision of ranked answers for each row of weights.

    Args:
        yes: (A,), the best first.
        weights: (B, A), how often each answer counts.

    Returns:
        (B,), NaN where no answer yes or no answer no counts.
    """
    hits = weights * yes
    found, ranked = np.cumsum(hits, axis=1), np.cumsum(weights, axis=1)
    total = found[:, -1]
    precision = (hits * found / np.maximum(ranked, 1)).sum(1)
    known = (total > 0) & (total < ranked[:, -1])
    return np.where(known, precision / np.maximum(total, 1), np.nan)


def by_chance(positives: int, rows: int) -> float:
    """Returns the average precision that is expected of a random order.

    Args:
        positives: The number of positives, at least 1.
        rows: The number of rows, at least as many.

    Example:
        >>> by_chance(1, 2), by_chance(2, 2)  # (1/1 + 1/2) / 2
        (0.75, 1.0)
    """
    first = float((1 / np.arange(1, rows + 1)).sum()) / rows
    if rows == 1:
        return 1.0
    return first + (positives - 1) / (rows - 1) * (1 - first)
