"""The results of evaluations by rated segments or by video labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from pyseg._text import counted
from pyseg.metrics import MeanAveragePrecision


@dataclass(frozen=True)
class Result:
    """The result of an evaluation; every field is a number in metrics.jsonl.

    Attributes:
        measure: The field that ranks models: training keeps the weights with the best value.
        title: The name of the measure.
        more: Further metrics (`pyseg.evaluate.register_metric`), by name.
    """

    measure: ClassVar[str]
    title: ClassVar[str]
    more: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    @property
    def score(self) -> float:
        """The value of the measure; higher is better."""
        return float(getattr(self, self.measure))

    @classmethod
    def names(cls) -> list[str]:
        """Lists the numbers of every result of this kind."""
        return [option.name for option in fields(cls) if option.name != "more"]

    def values(self) -> dict[str, float]:
        """Returns all numbers by name, including those in `more`."""
        return {name: getattr(self, name) for name in self.names()} | dict(self.more)

    def describe(self) -> str:
        """Formats the result as the line that commands print."""
        return "; ".join([self._line(), *(f"{name} {v:.4f}" for name, v in self.more.items())])

    def _line(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class RatedResult(Result):
    """MAP@100k over rated (segment, class) pairs: paper, equation (7).

    Attributes:
        map: The mean over the classes that have a rated positive; NaN without any.
        map_all_classes: The sum over them divided by the number of all classes, as in the
            challenge, where a class without a positive counts 0.
        classes: The number of classes with a rated positive.
        all_classes: The number of classes of the task, 1,000 in the challenge.
        rated: The number of pairs.
        positives: The number of positive pairs.
    """

    measure = "map"
    title = "MAP@100k"
    map: float
    map_all_classes: float
    classes: int
    all_classes: int
    rated: int
    positives: int

    @classmethod
    def of(cls, precision: MeanAveragePrecision, all_classes: int | None = None) -> RatedResult:
        """Returns the result for the average precision of every class.

        Args:
            precision: From `pyseg.metrics`.
            all_classes: The number of classes of the task; default: all C.
        """
        positive = precision.positives > 0
        total, number = float(precision.per_class.sum()), all_classes or len(positive)
        return cls(
            map=total / int(positive.sum()) if positive.any() else float("nan"),
            map_all_classes=total / number,
            classes=int(positive.sum()),
            all_classes=number,
            rated=int(precision.rated.sum()),
            positives=int(precision.positives.sum()),
        )

    def _line(self) -> str:
        if not self.classes:
            return (
                f"MAP@100k nan: none of the {self.rated} ratings is positive, so that no class "
                "counts"
            )
        hint = "; with no negative one it says nothing" if self.positives == self.rated else ""
        return (
            f"MAP@100k {self.map:.4f} (mean over {counted(self.classes, 'class')} with a positive, "
            f"{self.map_all_classes:.4f} over all {self.all_classes}; "
            f"{counted(self.rated, 'rating')}, {self.positives} positive{hint})"
        )


@dataclass(frozen=True)
class LabelResult(Result):
    """Metrics against complete label lists, with the semantics of YouTube-8M's eval_util.py.

    Attributes:
        gap: Global average precision at 20.
        hit_at_1: Hit@1.
        perr: Precision at equal recall rate.
        map: The mean over the classes that occur.
        classes: The number of classes that occur.
        examples: The number of videos.
    """

    measure = "gap"
    title = "GAP@20"
    gap: float
    hit_at_1: float
    perr: float
    map: float
    classes: int
    examples: int

    def _line(self) -> str:
        return (
            f"GAP@20 {self.gap:.4f}, Hit@1 {self.hit_at_1:.4f}, PERR {self.perr:.4f}, "
            f"MAP {self.map:.4f} ({counted(self.examples, 'video')}, "
            f"{counted(self.classes, 'class')} that occur)"
        )


LOG_KEYS = ("stage", "step", "after", "data", "part")
"""What a line of metrics.jsonl says of an evaluation besides the numbers of its result."""

KINDS: tuple[type[Result], ...] = (RatedResult, LabelResult)


def kind_of(entry: Mapping[str, Any]) -> type[Result]:
    """Returns the kind of the result in a line of metrics.jsonl."""
    return RatedResult if "rated" in entry else LabelResult


def parse(entry: Mapping[str, Any]) -> Result:
    """Returns the result in a line of metrics.jsonl.

    Example:
        >>> line = {"gap": 0.5, "hit_at_1": 1, "perr": 1, "map": 0.5, "classes": 2, "examples": 3}
        >>> parse(line).describe()
        'GAP@20 0.5000, Hit@1 1.0000, PERR 1.0000, MAP 0.5000 (3 videos, 2 classes that occur)'
    """
    kind = kind_of(entry)
    known = {*kind.names(), *LOG_KEYS}
    more = {k: v for k, v in entry.items() if k not in known and type(v) in (int, float)}
    return kind(**{name: entry[name] for name in kind.names()}, more=more)
