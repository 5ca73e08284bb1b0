"""The classes of a run's model, those of them to score, and what their scores mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from pyseg.calibration import Calibration
from pyseg.data import vocabulary
from pyseg.errors import UserError
from pyseg.nn import FrameClassifier
from pyseg.runs import Run
from pyseg.timeline.events import ON, Thresholds


@dataclass(frozen=True)
class ScoredClasses:
    """The classes that a run's model knows, and those to score.

    Attributes:
        numbers: The C classes to score, by their numbers in the data.
        column: The logits' column of each class that the model knows, by its number.
        every_name: The names of all columns, if known.
    """

    numbers: Sequence[int]
    column: Mapping[int, int]
    every_name: Sequence[str] | None

    def columns(self, numbers: Iterable[int] | None = None) -> list[int]:
        """Returns the columns of some classes; default: those to score."""
        return [self.column[number] for number in (self.numbers if numbers is None else numbers)]

    def names(self, numbers: Iterable[int] | None = None) -> list[str]:
        """Returns the names of some classes, or their numbers as text; default: those to score."""
        numbers = self.numbers if numbers is None else numbers
        if self.every_name is None:
            return [str(number) for number in numbers]
        return [self.every_name[self.column[number]] for number in numbers]


def scored_classes(run: Run, model: FrameClassifier, file: str | None = None) -> ScoredClasses:
    """Returns the classes of a vocabulary; default: the rated ones, or else all.

    Args:
        run: The run.
        model: Its model.
        file: The vocabulary, of the format of segment_vocabulary.csv.

    Raises:
        pyseg.errors.UserError: The model does not know one of them.
        pyseg.errors.DataError: A vocabulary is malformed.
    """
    known = run.known_classes(model.num_classes) or range(model.num_classes)
    column = {number: at for at, number in enumerate(known)}
    numbers = run.rated_classes()
    if file is not None:
        numbers = vocabulary.read_segment_vocabulary(file).classes
    for number in numbers or ():
        if number not in column:
            raise UserError(
                f"{file or run}: expected classes of the {len(column)} that the model knows, found "
                f"class {number}"
            )
    names = cast(Any, model).config.class_names
    return ScoredClasses(list(column) if numbers is None else numbers, column, names)


def probabilities(logits: Tensor, calibration: Calibration | None) -> Tensor:
    """Returns the probabilities (S, model's classes) of logits; without a calibration, sigmoids."""
    if calibration is None:
        return logits.sigmoid()
    found: Tensor = calibration.probabilities(logits)
    return found


def event_thresholds(calibration: Calibration | None, columns: Sequence[int]) -> Thresholds:
    """Returns the thresholds of events of some classes, by their columns."""
    if calibration is None or calibration.thresholds is None:
        return ON
    return calibration.thresholds[list(columns)]
