"""The log of a run while it trains."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pyseg import distributed
from pyseg.errors import UserError
from pyseg.runs import Run
from pyseg.training.trackers import Tracker

_LOG = logging.getLogger("pyseg")


class Log:
    """A run's log, which trackers receive too. Only the first process writes it.

    Every line is on disk when `write` returns.

    Args:
        run: The run; its log is appended to.
        trackers: The trackers, which start with `start` or the first line.
        options: The run's options, for the trackers.

    Attributes:
        steps_before: Steps of the earlier stages, which the trackers' steps include.
    """

    def __init__(
        self, run: Run, trackers: Iterable[Tracker] = (), options: Mapping[str, Any] | None = None
    ) -> None:
        self.steps_before = 0
        self._run = run
        self._options = options or {}
        self._trackers = list(trackers)
        self._started: list[Tracker] = []

    def start(self) -> None:
        """Starts the trackers, unless they have started.

        Raises:
            pyseg.errors.UserError: One of them cannot; the message tells how to resume the run.
        """
        while self._trackers:
            tracker = self._trackers.pop(0)
            try:
                tracker.start(self._run.folder, self._options)
            except UserError as error:
                if self._run.is_unfinished:
                    raise UserError(f"{error}; {self._run.how_to_resume}") from error
                raise
            self._started.append(tracker)

    def write(self, stage: str, *, step: int, **values: Any) -> None:
        """Adds a line about a step of a stage."""
        if not distributed.is_first():
            return
        self._run.append_to_log(stage, step=step, **values)
        self.start()
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in list(self._started):
            try:
                tracker.log(stage, self.steps_before + step, numbers)
            except UserError as error:
                self._started.remove(tracker)
                _LOG.warning(
                    "%s; training goes on without this tracker, and %s has all numbers",
                    error,
                    self._run.log_file,
                )

    def close(self) -> None:
        """Ends the trackers."""
        while self._started:
            try:
                self._started.pop().finish()
            except UserError as error:
                _LOG.warning("%s", error)

    def size(self) -> int:
        """Returns the size of the log in bytes."""
        path = self._run.log_file
        return path.stat().st_size if path.exists() else 0

    def cut(self, size: int) -> None:
        """Truncates the log to a size in bytes."""
        if distributed.is_first() and self._run.log_file.exists():
            os.truncate(self._run.log_file, min(size, self.size()))
