"""The log of a run while it trains."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from pyseg import distributed
from pyseg.runs import Run
from pyseg.training.trackers import Tracker, make_tracker


class Log:
    """A run's log, which trackers receive too. Only the first process writes it.

    Every line is on disk when `write` returns.

    Args:
        run: The run; its log is appended to.
        trackers: The names of registered trackers, which start with the first line.
        options: The run's options, for the trackers.

    Attributes:
        steps_before: Steps of the earlier stages, which the trackers' steps include.

    Raises:
        pyseg.errors.UserError: A tracker is not known, or needs a package that is not installed.
    """

    def __init__(
        self, run: Run, trackers: Iterable[str] = (), options: Mapping[str, Any] | None = None
    ) -> None:
        self.steps_before = 0
        self._run = run
        self._options = options or {}
        self._trackers = [make_tracker(name) for name in trackers if distributed.is_first()]
        self._started: list[Tracker] = []

    def write(self, stage: str, *, step: int, **values: Any) -> None:
        """Adds a line about a step of a stage."""
        if not distributed.is_first():
            return
        self._run.append_to_log(stage, step=step, **values)
        while self._trackers:
            tracker = self._trackers.pop(0)
            tracker.start(self._run.folder, self._options)
            self._started.append(tracker)
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._started:
            tracker.log(stage, self.steps_before + step, numbers)

    def close(self) -> None:
        """Ends the trackers."""
        while self._started:
            self._started.pop().finish()

    def size(self) -> int:
        """Returns the size of the log in bytes."""
        path = self._run.log_file
        return path.stat().st_size if path.exists() else 0

    def cut(self, size: int) -> None:
        """Truncates the log to a size in bytes."""
        if distributed.is_first() and self._run.log_file.exists():
            os.truncate(self._run.log_file, min(size, self.size()))
