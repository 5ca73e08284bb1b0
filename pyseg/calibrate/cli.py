"""The command ``python -m pyseg.calibrate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np

from pyseg import _cli
from pyseg._files import sole_owner
from pyseg._memory import keep_memory
from pyseg._table import Table
from pyseg._text import counted
from pyseg.calibrate.config import CalibrateConfig
from pyseg.calibrate.pairs import HeldOut, RatedPairs
from pyseg.calibration import Calibration
from pyseg.data.records import without_record_warnings
from pyseg.errors import UserError
from pyseg.predict import PredictConfig, Scorer
from pyseg.runs import Run

FEWEST = 30
"""The fewest rated pairs to calibrate by."""

FEWEST_OF_A_KIND = 3
"""The fewest of them that are positive, and that are negative."""

_MOST_CLASSES = 20  # to print
_QUESTIONS = 5  # of `pyseg.rate`, for each that is drawn at random


def calibrate(config: CalibrateConfig) -> Calibration:
    """Writes the calibration of a run, and prints what it rests on and how good it is.

    Raises:
        pyseg.errors.UserError: There are too few ratings, the options do not fit the run, or its
            model was trained on mean features of whole videos.
        pyseg.errors.MissingFileError: There is no such file of ratings.
        pyseg.errors.DataError: A file is malformed.
        pyseg.errors.RecordError: A record is damaged.
    """
    _cli.check_in("ratings", config.ratings)
    scorer = Scorer(
        PredictConfig(
            config.run,
            config.data,
            batch_size=config.batch_size,
            on_error=config.on_error or Run(config.run).config().on_error,
            device=config.device,
            precision=config.precision,
            tf32=config.tf32,
        )
    )
    if scorer.model.config.level == "video":
        raise UserError(
            f"--run {config.run}: expected a run that was trained on frames, found one that was "
            "trained on mean features of whole videos"
        )
    with without_record_warnings():
        videos = HeldOut(config, scorer)
        if config.ratings is None:
            pairs = videos.rated_segments()
        else:
            pairs = videos.answers(config.ratings)
    for line in pairs.left_out:
        print(f"left out: {line}")
    arrays = pairs.arrays()
    _check_number(config, pairs, arrays["scores"])
    found = Calibration.fit(**arrays, num_classes=scorer.model.num_classes)
    segments = videos.segments()
    if summary := videos.report.summary():
        print(f"records: {summary}")
    found = replace(
        found.with_thresholds(segments),
        source=f"{len(pairs)} {pairs.source}",
        is_sample=pairs.is_sample,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        weights=scorer.run.weights_digest(),
    )
    with sole_owner(scorer.run.folder):
        found.write(scorer.run.calibration_file)
    for line in _summary(found, scorer, len(segments)):
        print(line)
    return found


def _check_number(config: CalibrateConfig, pairs: RatedPairs, scores: np.ndarray) -> None:
    """Refuses to calibrate by too few pairs."""
    positives = int((scores > 0.5).sum())
    if len(scores) >= FEWEST and FEWEST_OF_A_KIND <= positives <= len(scores) - FEWEST_OF_A_KIND:
        return
    where = f"--run {config.run}" if config.ratings is None else f"--ratings {config.ratings}"
    missing = max(FEWEST - len(scores), FEWEST_OF_A_KIND - min(positives, len(scores) - positives))
    if config.ratings is None:
        remedy = "name a file with more with --ratings, such as the answers of pyseg.rate"
    elif pairs.is_sample:
        remedy = (
            "answer more questions in pyseg.rate, one in five is random: about "
            f"{_QUESTIONS * missing} more"
        )
    else:
        remedy = f"rate at least {missing} more segments of these videos"
    raise UserError(
        f"{where}: expected at least {FEWEST} {pairs.source}, {FEWEST_OF_A_KIND} of them positive "
        f"and {FEWEST_OF_A_KIND} negative, found {len(scores)}, {positives} positive: {remedy}"
    )


def _summary(found: Calibration, scorer: Scorer, segments: int) -> Iterator[str]:
    """Yields the lines that say what a calibration rests on, and how good it is."""
    rated = np.flatnonzero(found.rated)
    yield f"{found.source}, {found.positives.sum()} positive, of {counted(len(rated), 'class')}"
    if not found.is_sample:
        yield "they may not be a random sample: the probabilities are those of segments like them"
    before, after = found.before, found.after
    yield (
        f"calibration error {before.error:.3f} before, {after.error:.3f} after (perfect "
        f"probabilities: {after.noise:.3f} from so few ratings); Brier score {before.brier:.4f} "
        f"before, {after.brier:.4f} after; by cross-validation over videos"
    )
    if not found.changes:
        yield "there is no evidence that other probabilities are better: they stay as they are"
    assert found.thresholds is not None
    yield f"thresholds of events: of {counted(segments, 'segment')}, for the best expected F1"
    shown = sorted(rated.tolist(), key=lambda c: (-found.rated[c], c))
    numbers = list(scorer.classes.column)
    names = scorer.classes.names([numbers[c] for c in shown[:_MOST_CLASSES]])
    rows = [
        (
            name,
            f"{found.rated[c]:,}",
            f"{found.positives[c]:,}",
            f"{1 / found.slopes[c]:.2f}",
            f"{found.biases[c]:+.2f}",
            f"{found.thresholds[c]:.2f}",
        )
        for c, name in zip(shown, names, strict=False)
    ]
    head = ("class", "ratings", "positive", "temperature", "bias", "threshold")
    yield Table(head, rows, numeric=range(1, 6)).markdown()
    if more := len(shown) - len(rows):
        yield f"and {more} more classes"
    yield f"written: {scorer.run.calibration_file}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.calibrate``."""
    keep_memory()
    parser = _cli.make_parser(
        CalibrateConfig,
        "pyseg.calibrate",
        "Makes probabilities that mean what they say of a run's scores, by rated segments that it "
        "was not trained on.",
    )
    calibrate(_cli.parse(parser, CalibrateConfig, argv))
