"""The section of the average precision of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyseg.report.charts import ClassBar, Series, draw_class_bars, draw_class_points
from pyseg.report.config import ReportConfig
from pyseg.report.page import PageTable, Picture, Section
from pyseg.report.runs import EvaluatedRun, ReportedRun, comparable, not_evaluated

_BARS = 12  # classes drawn from either end of the ranking
_TABLE_ROWS = 1000


def class_precision(runs: Sequence[ReportedRun], config: ReportConfig) -> Section:
    """Returns the section."""
    section = Section(
        "Average precision of classes",
        f"How well each class is ranked, evaluated for this page on {config.evaluated_on}; classes "
        "without a positive are left out.",
        missing=not_evaluated(runs),
    )
    groups = comparable(runs)
    if len(groups) > 1:
        section.missing.append(
            "The runs were evaluated on different videos or classes: their numbers cannot be "
            "compared across charts."
        )
    for group in groups:
        comparison = _Comparison(group)
        section.pictures += [comparison.bars(), comparison.points()]
        for place in range(1, len(group)):
            change = comparison.changes(place)
            if isinstance(change, Picture):
                section.pictures.append(change)
            else:
                section.missing.append(change)
        section.tables.append(comparison.table())
    return section


class _Comparison:
    """The average precision of each class, for runs that are evaluated on the same examples.

    Args:
        group: The runs; the others are compared with the first one.
    """

    def __init__(self, group: Sequence[EvaluatedRun]) -> None:
        self.group = group
        self.first, evaluation = group[0].run, group[0].evaluation
        self.names = [member.run.name for member in group]
        self.title = ", ".join(self.names)
        self.truth = "rated segments" if evaluation.rated else "video labels"
        self.positives = evaluation.precision.positives
        self.rated = evaluation.precision.rated
        self.values = np.stack([member.evaluation.precision.per_class for member in group])
        self.shown = shown = np.flatnonzero(self.positives)
        # By precision; ties go to the class with more positives, whose precision is more reliable.
        self.best = shown[np.lexsort((shown, -self.positives[shown], -self.values[0, shown]))]
        self.worst = shown[np.lexsort((shown, -self.positives[shown], self.values[0, shown]))]

    def bars(self) -> Picture:
        """Draws the best and the worst classes."""
        every = len(self.shown) <= 2 * _BARS
        parts = [self.best] if every else [self.best[:_BARS], self.worst[:_BARS][::-1]]
        which = "all classes" if every else f"the {_BARS} best and the {_BARS} worst classes"
        bars = [
            [
                ClassBar(
                    self.first.class_name(c),
                    int(self.positives[c]),
                    self.values[:, c].tolist(),
                    self.positives[c] / self.rated[c],
                )
                for c in part.tolist()
            ]
            for part in parts
        ]
        runs = [(member.number, member.run.name) for member in self.group]
        means = ", ".join(
            f"{name} {value:.4f}"
            for name, value in zip(
                self.names, self.values[:, self.shown].mean(axis=1).tolist(), strict=True
            )
        )
        return Picture(
            draw_class_bars(f"AP of {which}", "average precision", bars, runs),
            f"Average precision of {which}: {self.title}",
            f"Mean over {len(self.shown)} classes: {means}. In brackets: positives. Black: their "
            "share, which a random ranking reaches on average.",
            first=True,
        )

    def points(self) -> Picture:
        """Draws every class, by rank and against its number of positives."""
        series = [
            Series(member.number, member.run.name, self.positives[self.shown], own[self.shown])
            for member, own in zip(self.group, self.values, strict=True)
        ]
        return Picture(
            draw_class_points(
                ("AP of every class, best first", "AP and positives of every class"),
                ("classes", f"positive {self.truth}"),
                series,
            ),
            f"Average precision of every class, and against its number of positives: {self.title}",
            "With few positives an average precision says little.",
        )

    def changes(self, place: int) -> Picture | str:
        """Draws the classes in which a run differs most from the first one, if any does."""
        number, run = self.group[place].number, self.group[place].run
        change, shown = self.values[place] - self.values[0], self.shown
        order = shown[np.lexsort((shown, -change[shown]))]
        up = [c for c in order[:_BARS].tolist() if change[c] > 0]
        down = [c for c in order[-_BARS:].tolist() if change[c] < 0]
        groups = [
            [ClassBar(self.first.class_name(c), int(self.positives[c]), [change[c]]) for c in part]
            for part in (up, down)
            if part
        ]
        if not groups:
            return f"No class differs between {run.name} and {self.first.name}."
        more, less = int((change[shown] > 0).sum()), int((change[shown] < 0).sum())
        return Picture(
            draw_class_bars(
                "classes that changed most", "change of AP", groups, [(number, run.name)]
            ),
            "Classes whose average precision differs most between "
            f"{run.name} and {self.first.name}",
            f"{run.name} against {self.first.name}: {more} classes better, {less} worse.",
        )

    def table(self) -> PageTable:
        """Returns all numbers, the best classes first."""
        head = ["class", "name", "positives", "of", *(f"AP {name}" for name in self.names)]
        named = self.first.class_names is not None
        rows = [
            [
                str(self.first.number_in_data(c)),
                self.first.class_name(c) if named else "",
                f"{self.positives[c]:,}",
                f"{self.rated[c]:,}",
                *(f"{value:.4f}" for value in self.values[:, c]),
            ]
            for c in self.best[:_TABLE_ROWS].tolist()
        ]
        which = "All" if len(rows) == len(self.shown) else f"The best {len(rows)} of"
        return PageTable(
            head,
            rows,
            numeric=(0, *range(2, len(head))),
            summary=f"{which} {len(self.shown)} classes as a table ({self.title})",
        )
