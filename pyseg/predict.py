"""Finds when things happen: ``python -m pyseg.predict --run <folder> --data <...>``.

Every video is cut into segments of five frames, all of them are scored, and the best 100,000 of
each class are written as a submission of the YouTube-8M segment challenge (`pyseg.submission`).
With ``--video ID --timeline out.png`` it draws the scores of one video over time instead.

What it has done so far lies in ``<out>.partial`` while it runs: the same command goes on from there
after an interruption. One command at a time works in that folder.

Under torchrun the shards are divided over the processes, each of which keeps what it has done in a
folder of its own in there; the first one puts it together (`pyseg.distributed`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg import _cli, distributed
from pyseg._containers import read_arrays
from pyseg._files import atomic_write, sole_owner
from pyseg._memory import keep_memory
from pyseg._progress import Progress
from pyseg.data import Example, ReadReport, collate, youtube8m
from pyseg.data.formats import frame_schema, frame_seconds
from pyseg.data.records import OnError
from pyseg.data.segments import UNRATED_ENDS, SegmentBlock, read_ahead, read_segments
from pyseg.errors import ArgumentError, DataError, UserError
from pyseg.evaluate import note_level
from pyseg.metrics import TopKPerClass
from pyseg.runs import Run, find_run_shards, open_data
from pyseg.submission import TOP, fits_submission, segment_id, write_submission
from pyseg.timeline import Rating, Timeline, clock

SAVE_EVERY = 300.0  # seconds between two states on disk


@dataclass
class PredictConfig:
    """What to score, with what, and where to write it.

    Args:
        run: The run folder that `pyseg.train` wrote.
        data: Records as a folder, glob or file, labelled or not; default: what the run was trained
            on.
        out: The submission to write.
        classes: A vocabulary of the classes to write (its column Index), for example
            segment_vocabulary.csv; default: the rated classes of the run's training data.
        top: Segments of a class, at most.
        skip_ends: Leave out the first 6 and the last 2 segments of every video, which YouTube-8M's
            raters were never shown.
        scores: An .npz file for the scores of all segments: "segments" (S,), "classes" (C,) and
            "scores" (S, C), which segments are ranked by.
        video_top: Leave out classes that are not among so many best ones of the whole video.
        video_weight: Rank by p(segment)^(1 - w) * p(video)^w instead of p(segment).
        video_run: The run that scores whole videos; default: --run.
        video: Draw the timeline of the video with this id; no submission is written.
        timeline: The .png or .html file of the timeline.
        timeline_classes: Classes in the timeline, those with the highest scores.
        batch_size: Segments scored at once.
        on_error: "raise" stops at a damaged record, "skip" leaves it out and says so.
        device: "cpu", "cuda", ...; default: a GPU where there is one.

    Raises:
        ValueError: A value is out of its range.
    """

    run: str
    data: str | None = None
    out: str = "submission.csv"
    classes: str | None = None
    top: int = TOP
    skip_ends: bool = False
    scores: str | None = None
    video_top: int | None = None
    video_weight: float = 0.0
    video_run: str | None = None
    video: str | None = field(default=None, metadata={"word": True})
    timeline: str | None = None
    timeline_classes: int = 8
    batch_size: int = 512
    on_error: OnError = "raise"
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("top", "video_top", "timeline_classes"):
            _cli.check_range(name, getattr(self, name), 1)
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)
        if not 0.0 <= self.video_weight <= 1.0:
            raise ArgumentError(f"video_weight: expected in [0, 1], found {self.video_weight}")
        if self.scores is not None and not self.scores.endswith(".npz"):
            raise ArgumentError(f"scores: expected the name of an .npz file, found {self.scores}")
        if (self.video is None) != (self.timeline is None):
            given, other = ("video", "timeline")[:: 1 if self.timeline is None else -1]
            raise ArgumentError(f"{given}: expected --{other} with it, found none")
        if self.timeline is not None and not self.timeline.endswith((".png", ".html")):
            raise ArgumentError(f"timeline: expected a .png or .html file, found {self.timeline}")


class Scorer:
    """Scores all segments of videos with a run's model.

    Args:
        config: Which runs, and how the scores of segments and videos go together.

    Raises:
        pyseg.errors.UserError: A run, a vocabulary or the device is not what it should be.
    """

    def __init__(self, config: PredictConfig) -> None:
        self.config = config
        self.device = distributed.local_device(distributed.pick_device(config.device))
        self.run = Run(config.run)
        self.trained = self.run.config()
        self.run.warn_unfinished()
        self.model = cast(Any, self.run.model().to(self.device))
        # The number that the data has for each of the model's classes.
        known = self.run.known_classes(self.model.num_classes)
        if known is None:
            known = list(range(self.model.num_classes))
        rated = self.run.rated_classes()
        self.classes = known if rated is None else rated
        if config.classes is not None:
            self.classes = youtube8m.read_segment_vocabulary(config.classes).classes
        with _cli.option("run", config.run):
            self.schema = frame_schema(self.model.feature_sizes)
        self.column = {number: at for at, number in enumerate(known)}
        for number in self.classes:
            if number not in self.column:
                raise UserError(
                    f"{config.classes or self.run}: expected classes of the {len(known)} that the "
                    f"model knows, found class {number}"
                )
        columns = [self.column[number] for number in self.classes]
        self._columns = torch.tensor(columns, device=self.device)
        self.video_model: nn.Module | None = None
        if config.video_top is not None or config.video_weight > 0:
            self.video_run = Run(config.video_run) if config.video_run else self.run
            self._max_frames = self.video_run.config().max_frames
            self.video_model = self.model
            if config.video_run:
                other = cast(Any, self.video_run.model().to(self.device))
                for name in ("feature_sizes", "num_classes"):
                    expected, found = getattr(self.model, name), getattr(other, name)
                    if expected != found:
                        raise UserError(
                            f"--video_run {self.video_run}: expected {name} {expected} as "
                            f"{self.run} has, found {found}"
                        )
                self.video_model = other

    @torch.inference_mode()
    def logits(self, block: SegmentBlock) -> Tensor:
        """Returns the logits of every segment, (S, model's classes), on the model's device."""
        if not len(block.frames):
            return torch.empty(0, self.model.num_classes, device=self.device)
        frames = torch.from_numpy(block.frames).to(self.device, non_blocking=True)
        num_frames = torch.from_numpy(block.num_frames).to(self.device, non_blocking=True)
        logits: Tensor = self.model(frames, num_frames).float()
        return logits

    @torch.inference_mode()
    def score(self, block: SegmentBlock) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns what the segments are ranked by.

        Returns:
            (S, C) float32 scores of the classes in ``classes``: logits or, with a video weight,
            logarithms of the merged probability; and (S, C) bool, the pairs that may be ranked,
            or None where all may.
        """
        scores = self.logits(block)[:, self._columns]
        candidates = None
        if self.video_model is not None:
            videos = self._video_logits(block)
            owners = torch.from_numpy(np.repeat(np.arange(len(block.ids)), np.diff(block.offsets)))
            if (top := self.config.video_top) is not None:
                best = videos.topk(min(top, videos.shape[1]), dim=1).indices
                among = torch.zeros_like(videos, dtype=torch.bool).scatter_(1, best, True)
                candidates = among[:, self._columns][owners].cpu().numpy()
            if (weight := self.config.video_weight) > 0:
                whole = functional.logsigmoid(videos[:, self._columns])[owners]
                scores = (1 - weight) * functional.logsigmoid(scores) + weight * whole
        return scores.cpu().numpy(), candidates

    def _video_logits(self, block: SegmentBlock) -> Tensor:
        """Returns the logits of whole videos, (V, model's classes)."""
        none = np.zeros(0)
        examples = [
            Example(id, video[: self._max_frames], none, none)
            for id, video in zip(block.ids, block.videos, strict=True)
        ]
        batch = collate(examples).to(self.device)
        assert self.video_model is not None
        logits: Tensor = self.video_model(batch.frames, batch.num_frames)
        return logits.float()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


class _Work:
    """What a prediction has found so far, and its copy on disk.

    Segments are numbered in the order in which they are read, so that of equal scores the earlier
    segment comes first.
    """

    def __init__(self, folder: Path, request: dict[str, Any], num_classes: int, top: int) -> None:
        self.folder = folder
        self.best = TopKPerClass(num_classes, top)
        self.position = (0, 0)
        self.videos: list[str] = []
        self.firsts: list[int] = []  # number of each video's first segment, and its start
        self.begins: list[int] = []
        self.num_segments = 0
        self.scores: _ScoreFile | None = None  # where all scores are kept
        self.scores_digest = ""  # of what the state on disk knows of them
        self._request = json.dumps(request, sort_keys=True, indent=1)
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Goes on from what is on disk, if anything is."""
        asked, state = self.folder / "request.json", self.folder / "state.npz"
        if not state.is_file():
            return False
        if asked.read_bytes() != self._request.encode():
            raise UserError(
                f"{self.folder} holds an unfinished prediction with other options, records or "
                "weights: delete it to start anew"
            )
        try:
            arrays = read_arrays(state)
            self.best = TopKPerClass.from_state(
                {name[4:]: value for name, value in arrays.items() if name.startswith("top.")}
            )
            self.position = tuple(arrays["position"].tolist())
            self.num_segments = int(arrays["num_segments"])
            self.scores_digest = str(arrays["scores_digest"])
            self.videos = arrays["videos"].tobytes().decode().split("\n")[:-1]
            self.firsts, self.begins = arrays["firsts"].tolist(), arrays["begins"].tolist()
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{state}: expected an unfinished prediction, found: {error}; delete the folder to "
                "start anew"
            ) from error
        return True

    def add(self, block: SegmentBlock, scores: np.ndarray, candidates: np.ndarray | None) -> None:
        first = self.num_segments
        numbers = np.arange(first, first + len(scores))
        self.best.update(numbers, scores, candidates=candidates)
        self.videos += block.ids
        self.firsts += (first + block.offsets[:-1]).tolist()
        has = np.diff(block.offsets) > 0
        begins = np.zeros(len(has), np.int64)
        begins[has] = block.starts[block.offsets[:-1][has]]
        self.begins += begins.tolist()
        self.num_segments += len(scores)
        self.position = block.position

    def append(self, other: _Work) -> None:
        """Adds what another has found in the shards that come next."""
        state = other.best.state()
        state["segment_ids"] = state["segment_ids"].astype(np.int64) + self.num_segments
        self.best.merge(TopKPerClass.from_state(state))
        self.videos += other.videos
        self.firsts += [self.num_segments + first for first in other.firsts]
        self.begins += other.begins
        self.num_segments += other.num_segments

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "request.json") as file:
            file.write(self._request.encode())
        names = "".join(f"{id}\n" for id in self.videos).encode()
        arrays: dict[str, Any] = {
            "position": np.array(self.position, np.int64),
            "num_segments": np.array(self.num_segments, np.int64),
            "videos": np.frombuffer(names, np.uint8),
            "firsts": np.array(self.firsts, np.int64),
            "begins": np.array(self.begins, np.int64),
            "scores_digest": np.array(
                "" if self.scores is None else self.scores.digest.hexdigest()
            ),
            **{f"top.{name}": value for name, value in self.best.state().items()},
        }
        with atomic_write(self.folder / "state.npz") as file:
            np.savez(file, **arrays)
        self._saved = time.monotonic()

    def save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def names(self, size: int) -> list[str]:
        """Returns what each segment is called, by number."""
        ends = [*self.firsts[1:], self.num_segments]
        return [
            segment_id(video, begin + size * number)
            for video, first, end, begin in zip(
                self.videos, self.firsts, ends, self.begins, strict=True
            )
            for number in range(end - first)
        ]


class _ScoreFile:
    """All scores, row by row; they become an .npz file when the number of rows is known."""

    def __init__(self, path: Path, folder: Path, num_classes: int) -> None:
        self.path = path
        self.digest = hashlib.sha256()  # of the rows so far
        self._rows = folder / "scores.raw"
        self._row_bytes = 4 * num_classes
        folder.mkdir(parents=True, exist_ok=True)

    def cut(self, rows: int, digest: str) -> None:
        """Leaves the first rows, those that the state on disk knows of."""
        left = rows * self._row_bytes
        with open(self._rows, "a+b") as file:
            file.truncate(min(left, file.tell()))
            file.seek(0)
            while chunk := file.read(1 << 22):
                self.digest.update(chunk)
                left -= len(chunk)
        if left or (rows and self.digest.hexdigest() != digest):
            raise DataError(
                f"{self._rows}: expected {rows} rows of the digest {digest}, found "
                f"{'fewer' if left else self.digest.hexdigest()}: delete the folder to start anew"
            )

    def add(self, scores: np.ndarray, candidates: np.ndarray | None) -> None:
        if candidates is not None:
            scores = np.where(candidates, scores, -np.inf)
        rows = np.ascontiguousarray(scores, np.float32).data
        self.digest.update(rows)
        with open(self._rows, "ab") as file:
            file.write(rows)

    def append(self, other: _ScoreFile) -> None:
        """Adds the rows of another."""
        with open(self._rows, "ab") as file, open(other._rows, "rb") as rows:
            shutil.copyfileobj(rows, file, 1 << 22)

    def finish(self, segments: list[str], classes: Sequence[int]) -> None:
        shape = (len(segments), len(classes))
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with atomic_write(self.path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in (
                ("segments", np.array(segments, str)),
                ("classes", np.array(classes, np.int64)),
            ):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            with archive.open("scores.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(member, header)
                with open(self._rows, "rb") as rows:
                    shutil.copyfileobj(rows, member, 1 << 22)


def _ranked(work: _Work, segments: list[str], classes: Sequence[int]) -> Iterator[Any]:
    best = work.best.finish()
    for row, number in enumerate(classes):
        numbers = best.segment_ids[best.offsets[row] : best.offsets[row + 1]].tolist()
        yield number, (segments[n] for n in numbers)


def predict(config: PredictConfig) -> Path:
    """Scores every segment and writes the submission; returns its path.

    Raises:
        pyseg.errors.UserError: The options do not fit the run or the data, or another process is
            writing the same submission.
        pyseg.errors.RecordError: A record is damaged.
        KeyboardInterrupt: It was asked to stop, and has saved what it had.
    """
    out = Path(config.out)
    folder = out.with_name(out.name + ".partial")
    with contextlib.ExitStack() as owned:
        if distributed.is_first():
            owned.enter_context(sole_owner(folder))
        distributed.wait()
        return _predict(config, out, folder)


def _request(scorer: Scorer, shards: Sequence[str]) -> dict[str, Any]:
    """Returns all that decides what a prediction is; one that goes on has to have the same."""
    request = {
        **asdict(scorer.config),
        "shards": [[os.path.realpath(path), os.path.getsize(path)] for path in shards],
        "classes": scorer.classes,
        "weights": _digest(scorer.run.weights_file),
    }
    if scorer.video_model is not None:
        request["video_weights"] = _digest(scorer.video_run.weights_file)
    for name in ("batch_size", "device", "data"):  # change nothing but rounding
        request.pop(name)
    return request


def _finish(
    scorer: Scorer, work: _Work, request: dict[str, Any], others: Sequence[Path], out: Path
) -> None:
    """Writes the submission, and all scores, of this process and of the folders of the others."""
    rows = work.scores
    for folder in others:
        other = _Work(folder, request, len(scorer.classes), scorer.config.top)
        other.resume()
        work.append(other)
        if rows is not None:
            rows.append(_ScoreFile(rows.path, folder, len(scorer.classes)))
    segments = work.names(scorer.schema.segment_size)
    if rows is not None:
        rows.finish(segments, scorer.classes)
    write_submission(out, _ranked(work, segments, scorer.classes))


def _predict(config: PredictConfig, out: Path, folder: Path) -> Path:
    """Does what `predict` says; what it has done so far lies in the folder."""
    scorer = Scorer(config)
    shards = find_run_shards(scorer.trained, config.data)
    request = _request(scorer, shards)
    rank, processes = distributed.rank(), distributed.world_size()
    own = [folder]
    if processes > 1:
        own = [folder / f"{number + 1}-of-{processes}" for number in range(processes)]
    work = _Work(own[rank], request, len(scorer.classes), config.top)
    resumed = work.resume()
    if resumed:
        print(f"going on from {folder}: {work.num_segments} segments are done")
    rows = None
    if config.scores is not None:
        rows = work.scores = _ScoreFile(Path(config.scores), own[rank], len(scorer.classes))
        rows.cut(work.num_segments, work.scores_digest)
    report = ReadReport()
    # In a row, so that segments have the order that they have in one process.
    bounds = [len(shards) * n // processes for n in range(processes + 1)]
    shards = shards[bounds[rank] : bounds[rank + 1]]
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
    begun, before = time.monotonic(), work.num_segments
    with _cli.stop_requests() as stopped:
        with Progress("predict", "segments", initial=before) as bar:
            for block in read_ahead(blocks):
                scores, candidates = scorer.score(block)
                work.add(block, scores, candidates)
                if rows is not None:
                    rows.add(scores, candidates)
                bar.note(shard=f"{block.position[0] + 1} of {len(shards)}")
                bar.update(len(scores))
                if stopped():
                    work.save()
                    print(f"stopped after {work.num_segments} segments: the same command goes on")
                    raise KeyboardInterrupt
                work.save_now_and_then()
        if processes > 1:
            work.save()  # for the first process, and before the others are waited for
        scored = distributed.total(work.num_segments - before)
        seconds = time.monotonic() - begun
        report = distributed.total(report)
        if distributed.is_first():
            _finish(scorer, work, request, own[1:], out)
            if folder.exists():
                shutil.rmtree(folder)
    if summary := report.summary():
        print(f"records: {summary}")
    note_level(scorer.model, "frame", scorer.run, config.data or scorer.trained.data)
    rate = scored / max(seconds, 1e-9)
    print(
        f"{work.num_segments} segments of {len(work.videos)} videos, {len(scorer.classes)} "
        f"classes, {rate:.0f} segments/s"
    )
    if config.scores is not None:
        print(f"scores: {config.scores}")
    print(f"submission: {out}")
    return out


def timelines(
    scorer: Scorer, shards: Sequence[str], ratings: Mapping[str, Sequence[Rating]], top: int
) -> Iterator[Timeline]:
    """Yields the scores of some videos over time, in the order in which they are read.

    Args:
        scorer: Scores their segments.
        shards: The records to look for them in.
        ratings: Of every video that is wanted, by id.
        top: Classes to show, those with the highest scores; rated ones come on top of them.

    Raises:
        pyseg.errors.RecordError: A record is damaged.
    """
    names = scorer.model.config.class_names
    left = set(ratings)
    blocks = read_segments(
        shards, scorer.schema, 1, keep=left.__contains__, on_error=scorer.config.on_error
    )
    while left and (block := next(blocks, None)) is not None:
        [video] = block.ids
        left.remove(video)
        probabilities = scorer.logits(block).sigmoid().cpu().numpy()
        column = scorer.column
        peaks = {number: probabilities[:, column[number]].max() for number in scorer.classes}
        shown = sorted(peaks, key=lambda number: -peaks[number])[:top]
        # Every class that the model knows, not only those of a submission: ratings may be of any.
        rated = {rating.number for rating in ratings[video]}
        shown += sorted(rated & column.keys() - set(shown))
        columns = [column[number] for number in shown]
        yield Timeline(
            title=video,
            starts=block.starts,
            ends=block.starts + block.num_frames,
            probabilities=probabilities[:, columns],
            numbers=shown,
            names=[str(n) for n in shown] if names is None else [names[c] for c in columns],
            ratings=ratings[video],
            frame_seconds=frame_seconds(scorer.schema),
        )


def timeline(config: PredictConfig) -> Path:
    """Draws the scores of one video over time; returns the path of the picture.

    Raises:
        pyseg.errors.UserError: There is no such video, or the options do not fit the run.
        pyseg.errors.RecordError: A record is damaged.
    """
    assert config.video is not None
    assert config.timeline is not None
    scorer = Scorer(config)
    shards = find_run_shards(scorer.trained, config.data)
    ratings: list[Rating] = []
    try:
        collection = open_data(scorer.trained, config.data)
        rated = collection.segments(
            "all", cache=False, keep=config.video.__eq__, rank=0, world_size=1
        )
    except DataError:  # no labels, so no ratings
        rated = None
    for example in () if rated is None else rated:
        start = int(example.id.rpartition(":")[2])
        for number, score in zip(example.classes.tolist(), example.scores.tolist(), strict=True):
            ratings.append(Rating(number, start, score > 0.5))
    drawn = next(timelines(scorer, shards, {config.video: ratings}, config.timeline_classes), None)
    if drawn is None:
        raise UserError(f"--video {config.video}: no such video in {len(shards)} shards")
    drawn.save(config.timeline)
    for column, number in enumerate(drawn.numbers[: config.timeline_classes]):
        scores = drawn.probabilities[:, column]
        best = int(scores.argmax())
        name = drawn.names[column]
        named = name if name == str(number) else f"{number} {name}"
        print(f"{scores[best]:.3f} at {clock(drawn.starts[best] * drawn.frame_seconds)}  {named}")
    print(f"timeline: {config.timeline}")
    return Path(config.timeline)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.predict``."""
    keep_memory()
    parser = _cli.make_parser(
        PredictConfig,
        "pyseg.predict",
        "Scores every segment of every video and writes a submission, or draws one video's scores "
        "over time.",
        torchrun=True,
    )
    config = _cli.parse(parser, PredictConfig, argv)
    read = {"data": config.data, "classes": config.classes}
    if config.video is None:
        _cli.check_out("out", config.out, scores=config.scores, **read)
    else:
        _cli.check_out("timeline", config.timeline, **read)
    _cli.check_out("scores", config.scores, **read)
    with distributed.session(distributed.pick_device(config.device)):
        if config.video is None:
            predict(config)
        elif distributed.is_first():
            timeline(config)


if __name__ == "__main__":
    _cli.run(main)
