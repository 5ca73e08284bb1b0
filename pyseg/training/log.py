"""The log of a run while it trains."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyseg import distributed
from pyseg._extras import install_command
from pyseg.errors import UserError
from pyseg.runs import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def summary_writer() -> Callable[..., SummaryWriter]:
    """Returns the class that writes files for TensorBoard.

    Raises:
        pyseg.errors.UserError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard: expected the package tensorboard ({install_command('tensorboard')}), "
            f"found: {error}"
        ) from error
    return SummaryWriter


class Log:
    """A run's log, also as TensorBoard files. Only the first process writes them.

    Every line is on disk when `write` returns.

    Args:
        run: The run; its log is appended to.
        tensorboard: Whether to write TensorBoard files too: every number as ``<stage>/<name>``.

    Attributes:
        steps_before: Steps of the earlier stages, which TensorBoard's steps include.

    Raises:
        pyseg.errors.UserError: TensorBoard is requested and not installed.
    """

    def __init__(self, run: Run, tensorboard: bool = False) -> None:
        self.steps_before = 0
        self._run = run
        self._make_writer: Callable[..., SummaryWriter] | None = None
        if tensorboard and distributed.is_first():
            self._make_writer = summary_writer()
        self._writer: SummaryWriter | None = None

    def write(self, stage: str, *, step: int, **values: Any) -> None:
        """Adds a line about a step of a stage."""
        if not distributed.is_first():
            return
        self._run.append_to_log(stage, step=step, **values)
        if self._make_writer is None:
            return
        step += self.steps_before
        if self._writer is None:  # an interrupted run may have written this step and later ones
            self._writer = self._make_writer(str(self._run.tensorboard_folder), purge_step=step)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def size(self) -> int:
        """Returns the size of the log in bytes."""
        path = self._run.log_file
        return path.stat().st_size if path.exists() else 0

    def cut(self, size: int) -> None:
        """Truncates the log to a size in bytes."""
        if distributed.is_first() and self._run.log_file.exists():
            os.truncate(self._run.log_file, min(size, self.size()))
