"""Progress of long work: a bar on a terminal, elsewhere an occasional line of the log."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

_LOG = logging.getLogger("pyseg")

FIRST_LINE = 10.0
"""Seconds to the first line; later intervals are a fifth of the time so far, at most 10 minutes."""


class Progress:
    """Shows the progress of some work; a context manager.

    Args:
        name: The work.
        unit: What is counted.
        total: Number of units, if known.
        initial: Units that were done before.
        examples: Examples per unit; the speed is then shown in examples.
        scale: Shorten large numbers, such as bytes: 12.3M.
        hidden: Show nothing.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        total: int | None = None,
        *,
        initial: int = 0,
        examples: int | None = None,
        scale: bool = False,
        hidden: bool = False,
    ) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            desc=name,
            unit=f" {unit}",
            total=total,
            initial=initial,
            unit_scale=scale,
            leave=False,
            disable=True if hidden else None,  # None: only on a terminal
        )
        self._quiet = hidden or not self._bar.disable
        self._name, self._unit, self._scale = name, unit, scale
        self.done, self.total, self._initial, self._examples = initial, total, initial, examples
        self._notes = ""
        self._began = time.monotonic()
        self._due = self._began + FIRST_LINE

    def __enter__(self) -> Progress:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the bar."""
        self._bar.close()

    def update(self, number: int = 1) -> None:
        """Adds finished units."""
        self.done += number
        self._bar.update(number)
        if not self._quiet and time.monotonic() >= self._due:
            now = time.monotonic()
            self._due = now + min(max(FIRST_LINE, (now - self._began) / 5), 600.0)
            _LOG.info("%s", self._line(now - self._began))

    def expect(self, total: int) -> None:
        """Sets the total."""
        self.total = self._bar.total = total

    def note(self, **notes: Any) -> None:
        """Shows named values from the next line on."""
        self._notes = "".join(f", {name} {value}" for name, value in notes.items())
        self._bar.set_postfix(notes, refresh=False)

    def write(self, line: str) -> None:
        """Prints a line on stdout, above the bar."""
        self._bar.write(line)

    def _line(self, seconds: float) -> str:
        rate = (self.done - self._initial) / seconds
        text = f"{self._name}: {self._count(self.done)}"
        left = ""
        if self.total:
            text += f" of {self._count(self.total)} {self._unit} ({self.done / self.total:.0%})"
            if rate:
                rest = timedelta(seconds=round(max(0, self.total - self.done) / rate))
                left = f", {rest} left"
        else:
            text += f" {self._unit}"
        per, unit = (rate * self._examples, "examples") if self._examples else (rate, self._unit)
        speed = self._count(per) if per >= 10 else f"{per:.2g}"
        return f"{text}{self._notes}, {speed} {unit}/s{left}"

    def _count(self, number: float) -> str:
        if not self._scale:
            return f"{number:,.0f}"
        from tqdm import tqdm

        return str(tqdm.format_sizeof(number))
