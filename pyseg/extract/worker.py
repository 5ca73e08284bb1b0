"""Computing the features of single videos, in this process or in several others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import torch

from pyseg import _cli
from pyseg.backbones import Backbone, make_backbone
from pyseg.data import FeatureSet
from pyseg.errors import DataError, PysegError, UserError, WorkerError
from pyseg.extract.features import check_backbone, read_rows
from pyseg.extract.manifest import Outcome, Status, Video
from pyseg.extract.parts import Parts

if TYPE_CHECKING:
    from pyseg.video import DecodeReport

_PATIENCE = 5.0  # seconds to wait for processes to stop


class StoppedError(Exception):
    """The user asked to stop."""


@dataclass(frozen=True)
class Work:
    """What is to be done with each video.

    Attributes:
        backbone: The name of the network.
        weights: Its weights.
        device: The device to compute on.
        fps: Frames a second.
        batch_size: Frames that the network gets at once.
        fast: See `pyseg.video.sample_frames`.
        max_seconds: What comes after so many seconds of a video is left out; None: nothing.
        parts: Where the features go.
        threads: The threads of the network.
        expected: The features, and the network that the first process made.
    """

    backbone: str
    weights: str | None
    device: str
    fps: float
    batch_size: int
    fast: bool
    max_seconds: float | None
    parts: Parts
    threads: int
    expected: FeatureSet

    def make_backbone(self) -> Backbone:
        """Makes the network.

        Raises:
            pyseg.errors.UserError: It differs from that of the first process.
            pyseg.errors.PysegError: It cannot be made.
        """
        made = make_backbone(self.backbone, self.weights, device=self.device)
        expected = self.expected.backbone
        assert expected is not None
        if made.sha256 != expected.sha256:
            raise UserError(
                f"backbone: expected the same weights from {self.backbone} in every process, found "
                "others: the factory makes other weights every time: seed or load them"
            )
        check_backbone(made, self.expected)
        return made


Tell = Callable[[float], None]
"""Gets the share of a video that is done."""


class _UnreadableError(Exception):
    """The video cannot be read."""


def process(
    video: Video, work: Work, backbone: Backbone, tell: Tell, stopped: Callable[[], bool]
) -> Outcome:
    """Writes the features of a video; returns what became of it.

    Args:
        video: The video.
        work: What is to be done.
        backbone: The network.
        tell: Gets the share of the video that is done.
        stopped: Returns whether to stop.

    Raises:
        StoppedError: The user asked to stop; nothing is left of the video.
        OSError: The features cannot be written.
    """
    from pyseg.video import DecodeReport

    began, report = time.monotonic(), DecodeReport()
    blocks = _blocks(video, work, backbone, report)
    try:
        expected = next(blocks)
        with work.parts.writer(video) as part:
            for block in blocks:
                part.add(block)
                tell(min(1.0, part.rows / max(expected, 1)))
                if stopped():
                    raise StoppedError
            part.finish()
    except _UnreadableError as error:
        return _outcome("skipped", str(error), report, 0, began)
    reason = None
    if report.truncated:
        stated = "" if report.expected is None else f" of {report.expected:.2f} s"
        reason = f"the file ends after {report.duration:.2f} s{stated}"
    status: Status = "truncated" if report.truncated else "ok"
    outcome = _outcome(status, reason, report, part.rows, began)
    work.parts.finish(video, outcome)
    return outcome


def _blocks(video: Video, work: Work, backbone: Backbone, report: DecodeReport) -> Iterator[Any]:
    """Yields the expected number of rows, then the rows.

    Raises:
        _UnreadableError: The video cannot be read.
    """
    from pyseg.video import probe

    try:
        duration = probe(video.path).duration or 0
        yield min(duration, work.max_seconds or duration) * work.fps
        yield from read_rows(
            video.path,
            backbone,
            work.fps,
            batch_size=work.batch_size,
            fast=work.fast,
            max_seconds=work.max_seconds,
            report=report,
        )
        if work.max_seconds is not None and not report.duration:  # decoding stopped there
            report.duration = work.max_seconds
    except (DataError, OSError) as error:
        raise _UnreadableError(str(error)) from error


def _outcome(
    status: Status, reason: str | None, report: DecodeReport, frames: int, began: float
) -> Outcome:
    return Outcome(
        status,
        reason,
        duration=round(report.duration, 3),
        frames=frames,
        decoded_frames=report.frames,
        corrupt_frames=report.corrupt,
        seconds=round(time.monotonic() - began, 3),
    )


Hear = Callable[[Video, "float | Outcome"], None]
"""Gets a video with the share of it that is done, and at last with what became of it."""


def run_here(videos: Sequence[Video], work: Work, stopped: Callable[[], bool], hear: Hear) -> None:
    """Works on one video at a time, in this process.

    Raises:
        StoppedError: The user asked to stop.
        pyseg.errors.PysegError: The backbone cannot be made, or is another one than before.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(work.threads)
    try:
        backbone = work.make_backbone()
        for video in videos:
            hear(video, process(video, work, backbone, partial(hear, video), stopped))
    finally:
        torch.set_num_threads(threads)


def run_processes(
    videos: Sequence[Video], work: Work, stopped: Callable[[], bool], hear: Hear, count: int
) -> None:
    """Works on several videos at the same time, each in a process of its own.

    A process that dies, such as by a decoder's fault, loses only its video: another one takes its
    place.

    Raises:
        StoppedError: The user asked to stop.
        pyseg.errors.PysegError: A process met an error that is not one of its video.
    """
    todo = deque(videos)
    team: list[_Member] = []
    try:
        for _ in range(min(count, len(videos))):
            team.append(_Member(work))
        for member in team:
            member.give(todo.popleft() if todo else None)
        while any(member.video for member in team):
            if stopped():
                raise StoppedError
            for ready in wait([member.connection for member in team if member.video], timeout=0.2):
                member = next(m for m in team if m.connection is ready)
                video = member.video
                assert video is not None
                said = member.hear()
                if said is None:  # it has died
                    said = member.epitaph()
                    team[team.index(member)] = member = _Member(work)
                hear(video, said)
                if isinstance(said, Outcome):
                    member.give(todo.popleft() if todo else None)
    finally:
        for member in team:
            member.end()


class _Member:
    """A process that works on videos, one after the other."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._stop = context.Event()
        self.video: Video | None = None
        self._heard = False
        self._process: BaseProcess = context.Process(
            target=_work, args=(theirs, self._stop, work, _cli.plugins()), daemon=True
        )
        # It inherits that Ctrl-C is blocked, while it imports too: the first process stops it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, video: Video | None) -> None:
        """Gives it the next video; None: there is none."""
        self.video = video
        if video is not None:
            self.connection.send(video)

    def hear(self) -> float | Outcome | None:
        """Returns what it says; None: it has died.

        Raises:
            pyseg.errors.PysegError: It says that it cannot work.
        """
        try:
            said: float | Outcome | PysegError = self.connection.recv()
        except (EOFError, ConnectionResetError):
            if not self._heard:
                raise WorkerError(f"a process has died at its start: {self._end()}") from None
            return None
        self._heard = True
        if isinstance(said, Exception):
            raise said
        return said

    def epitaph(self) -> Outcome:
        """Returns what became of the video of a process that has died."""
        return Outcome("skipped", f"the process that read it has died: {self._end()}")

    def _end(self) -> str:
        self._process.join(_PATIENCE)
        code = self._process.exitcode
        if code is not None and code < 0:
            return signal.Signals(-code).name
        return f"status {code}"

    def end(self) -> None:
        """Ends the process; it removes what it has written of an unfinished video."""
        self._stop.set()
        self.connection.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(connection: Connection, stop: Any, work: Work, plugins: str | None) -> None:
    """Works on the videos that come over a connection, until it is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, StoppedError):
        try:
            torch.set_num_threads(work.threads)
            _cli.import_plugins(plugins)
            backbone = work.make_backbone()
            connection.send(0.0)
            while True:
                video = connection.recv()
                outcome = process(video, work, backbone, connection.send, stop.is_set)
                connection.send(outcome)
        except (EOFError, BrokenPipeError, ConnectionResetError, StoppedError):
            raise
        except PysegError as error:
            connection.send(error)
        except Exception as error:
            connection.send(WorkerError(f"{type(error).__name__}: {error}"))
            raise


def _die_with_parent() -> None:
    """Ends this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
