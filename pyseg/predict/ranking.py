"""Ranking all segments of all videos, which gives a submission."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyseg import _cli, distributed
from pyseg._files import sole_owner
from pyseg._progress import Progress
from pyseg._remote import location, size_of
from pyseg._text import counted
from pyseg._threads import read_ahead
from pyseg.data import ReadReport
from pyseg.data.segments import UNRATED_ENDS, read_segments
from pyseg.evaluate import note_level
from pyseg.predict.config import PredictConfig
from pyseg.predict.partial import PartialPrediction
from pyseg.predict.score_file import ScoreFile
from pyseg.predict.scorer import Scorer
from pyseg.submission import fits_submission, write_numbered


def predict(config: PredictConfig) -> Path:
    """Scores every segment and writes the submission; returns its path.

    Raises:
        pyseg.errors.UserError: The options do not fit the run or the data, or another process is
            writing the same submission.
        pyseg.errors.RecordError: A record is damaged.
        KeyboardInterrupt: The user asked to stop; the state so far is saved.
    """
    out = Path(config.out)
    folder = out.with_name(out.name + ".partial")
    with contextlib.ExitStack() as owned:
        if distributed.is_first():
            owned.enter_context(sole_owner(folder))
        distributed.wait()
        _predict(config, out, folder)
    return out


def _predict(config: PredictConfig, out: Path, folder: Path) -> None:
    """Writes the submission, with the state so far in a folder that no other command uses."""
    scorer = Scorer(config)
    shards = scorer.shards
    request = _request(scorer)
    rank, processes = distributed.rank(), distributed.world_size()
    folders = [folder]
    if processes > 1:
        folders = [folder / f"{number + 1}-of-{processes}" for number in range(processes)]
    work = _begin(scorer, request, folders[rank])
    if work.resume():
        print(f"continuing from {folder}: {counted(work.num_segments, 'segment')} done")
    # Consecutive shards keep the segments in the order of a single process.
    bounds = [len(shards) * n // processes for n in range(processes + 1)]
    report = ReadReport()
    begun, before = time.monotonic(), work.num_segments
    with _cli.stop_requests() as stopped:
        _rank(scorer, work, shards[bounds[rank] : bounds[rank + 1]], report, stopped)
        if processes > 1:
            work.save()  # to be merged by the first process, which waits for all others below
        scored = distributed.total(work.num_segments - before)
        seconds = time.monotonic() - begun
        report = distributed.total(report)
        if distributed.is_first():
            _finish(scorer, work, [_begin(scorer, request, path) for path in folders[1:]], out)
            if folder.exists():
                shutil.rmtree(folder)
    _print_summary(scorer, work, report, scored / max(seconds, 1e-9))


def _begin(scorer: Scorer, request: dict[str, Any], folder: Path) -> PartialPrediction:
    """Returns this process's prediction, resumed if its state was saved."""
    config, num_classes = scorer.config, len(scorer.classes.numbers)
    path = config.scores
    scores = None if path is None else ScoreFile(Path(path), folder, num_classes)
    # On a CPU, NumPy's partition and numba are faster than torch.topk.
    device = scorer.device if scorer.device.type == "cuda" else None
    return PartialPrediction(folder, request, num_classes, config.top, scores, device)


def _request(scorer: Scorer) -> dict[str, Any]:
    """Returns everything that determines a prediction, which a resumed one must share."""
    request = {
        **asdict(scorer.config),
        "shards": [[location(path), size_of(path)] for path in scorer.shards],
        "classes": list(scorer.classes.numbers),
        "weights": scorer.run.weights_digest(),
        "precision": scorer.precision.name,
    }
    if scorer.video_run is not None:
        request["video_weights"] = scorer.video_run.weights_digest()
    for name in (
        "batch_size",
        "device",
        "data",
        "calibrate",
        "tf32",
    ):  # these affect the ranking by rounding at most
        request.pop(name)
    return request


def _rank(
    scorer: Scorer,
    work: PartialPrediction,
    shards: Sequence[str],
    report: ReadReport,
    stopped: Callable[[], bool],
) -> None:
    """Adds the segments of shards that are not in ``work`` yet, until a request to stop."""
    config = scorer.config
    blocks = read_segments(
        shards,
        scorer.schema,
        config.batch_size,
        skip=UNRATED_ENDS if config.skip_ends else (0, 0),
        sound=fits_submission,
        start=work.position,
        on_error=config.on_error,
        report=report,
    )
    sent = ((block, scorer.send(block)) for block in blocks)
    with (
        scorer.precision.used_on(scorer.device),  # casts weights once
        Progress("predict", "segments", initial=work.num_segments) as bar,
    ):
        for block, frames in read_ahead(sent):
            scores, candidates = scorer.score(block, frames)
            work.add(block, scores, candidates)
            bar.note(shard=f"{block.position[0] + 1} of {len(shards)}")
            bar.update(len(scores))
            if stopped():
                work.save()
                done = counted(work.num_segments, "segment")
                print(f"stopped after {done}: the same command continues")
                raise KeyboardInterrupt
            work.save_if_due()


def _finish(
    scorer: Scorer, work: PartialPrediction, others: Sequence[PartialPrediction], out: Path
) -> None:
    """Writes the submission and all scores, of this process and of what the others have saved."""
    for other in others:
        other.resume()
        work.append(other)
    segments = work.segments(scorer.schema.segment_size)
    if work.scores is not None:
        work.scores.finish(segments, scorer.classes.numbers)
    write_numbered(out, work.ranked(scorer.classes.numbers), segments)


def _print_summary(
    scorer: Scorer, work: PartialPrediction, report: ReadReport, rate: float
) -> None:
    config = scorer.config
    if summary := report.summary():
        print(f"records: {summary}")
    note_level(scorer.model, "frame", scorer.run, config.data or scorer.trained.data)
    print(
        f"{counted(work.num_segments, 'segment')} of {counted(len(work.videos), 'video')}, "
        f"{counted(len(scorer.classes.numbers), 'class')}, {rate:.0f} segments/s"
    )
    if config.scores is not None:
        print(f"scores: {config.scores}")
    print(f"submission: {Path(config.out)}")
