"""The section of the average precision of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyseg.report.charts import ClassBar, Series, class_bars, points
from pyseg.report.config import ReportConfig
from pyseg.report.page import Figure, PageTable, Section
from pyseg.report.runs import EvaluatedRun, ReportedRun, comparable, not_evaluated

_BARS = 12  # classes drawn from either end of the ranking
_TABLE_ROWS = 5000


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
        section.figures += [comparison.bars(), *comparison.points()]
        for place in range(1, len(group)):
            change = comparison.changes(place)
            if isinstance(change, Figure):
                section.figures.append(change)
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
        self.chance = self.positives / np.maximum(self.rated, 1)
        # How far a ranking gets from chance to 1; where every rating is positive, any has AP 1.
        self.gain = (self.values - self.chance) / np.maximum(1 - self.chance, 1e-9)
        self.gain[:, self.chance >= 1] = 0.0
        ranked = shown[self.chance[shown] < 1]
        self.certain = len(shown) - len(ranked)
        self.best = self._sorted(ranked, -self.gain[0])
        self.worst = self._sorted(ranked, self.gain[0])

    def _sorted(self, classes: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Sorts classes by a key, and of equal ones by positives: more are more reliable."""
        order = np.lexsort((classes, -self.positives[classes], key[classes]))
        return classes[order]

    def bars(self) -> Figure:
        """Draws the classes that are ranked best and worst, measured by AP over chance."""
        every = len(self.best) <= 2 * _BARS
        parts = (
            [("", self.best)]
            if every
            else [
                ("best, by AP over chance", self.best[:_BARS]),
                ("worst", self.worst[:_BARS][::-1]),
            ]
        )
        which = "all classes" if every else f"the {_BARS} best and the {_BARS} worst classes"
        bars = [
            (
                heading,
                [
                    ClassBar(
                        self.first.class_name(c),
                        int(self.positives[c]),
                        self.values[:, c].tolist(),
                        float(self.chance[c]),
                    )
                    for c in part.tolist()
                ],
            )
            for heading, part in parts
        ]
        means = ", ".join(
            f"{name} {value:.4f}"
            for name, value in zip(
                self.names, self.values[:, self.shown].mean(axis=1).tolist(), strict=True
            )
        )
        left_out = (
            f" Left out: {self.certain} with positive ratings only, of which any ranking has AP 1."
            if self.certain
            else ""
        )
        return class_bars(
            f"AP of {which}",
            f"Average precision of {which}: {self.title}",
            bars,
            [(member.number, member.run.name) for member in self.group],
            caption=f"Mean over {len(self.shown)} classes: {means}. In brackets: positives. "
            f"Upright line: their share, which a random ranking reaches on average. Order: "
            f"(AP - chance) / (1 - chance).{left_out}",
            tall=True,
        )

    def points(self) -> list[Figure]:
        """Draws every class, by rank and against its number of positives."""
        ranked: list[Series] = []
        counted: list[Series] = []
        for member, own in zip(self.group, self.values, strict=True):
            order = self.shown[np.argsort(-own[self.shown], kind="stable")]
            ranks = np.arange(1, len(order) + 1)
            for found, classes, x in (
                (ranked, order, ranks),
                (counted, self.shown, self.positives[self.shown]),
            ):
                names = [self.first.class_name(c) for c in classes.tolist()]
                notes = [
                    f"positives: {self.positives[c]:,} of {self.rated[c]:,} (chance "
                    f"{self.chance[c]:.3f})"
                    for c in classes.tolist()
                ]
                series = Series(member.number, member.run.name, x, own[classes], names, notes)
                found.append(series)
        return [
            points(
                "AP of every class, best first",
                f"Average precision of every class, best first: {self.title}",
                ("rank", "AP"),
                ranked,
            ),
            points(
                "AP and positives of every class",
                f"Average precision of every class against its number of positives: {self.title}",
                (f"positive {self.truth}", "AP"),
                counted,
                caption="With few positives an average precision says little.",
                log=True,
            ),
        ]

    def changes(self, place: int) -> Figure | str:
        """Draws the classes in which a run differs most from the first one, if any does."""
        number, run = self.group[place].number, self.group[place].run
        change, shown = self.values[place] - self.values[0], self.shown
        order = shown[np.lexsort((shown, -change[shown]))]
        up = [c for c in order[:_BARS].tolist() if change[c] > 0]
        down = [c for c in order[-_BARS:].tolist() if change[c] < 0]
        groups = [
            (
                heading,
                [
                    ClassBar(self.first.class_name(c), int(self.positives[c]), [float(change[c])])
                    for c in part
                ],
            )
            for heading, part in (("better", up), ("worse", down))
            if part
        ]
        if not groups:
            return f"No class differs between {run.name} and {self.first.name}."
        more, less = int((change[shown] > 0).sum()), int((change[shown] < 0).sum())
        return class_bars(
            f"classes that changed most: {run.name}",
            "Classes whose average precision differs most between "
            f"{run.name} and {self.first.name}",
            groups,
            [(number, run.name)],
            caption=f"Change of AP, {run.name} against {self.first.name}: {more} classes better, "
            f"{less} worse.",
            signed=True,
            tall=True,
        )

    def table(self) -> PageTable:
        """Returns all numbers, the classes with the highest AP over chance first."""
        head = ["class", "name", *(f"AP {name}" for name in self.names)]
        head += [f"over chance{f' {name}' if len(self.names) > 1 else ''}" for name in self.names]
        head += ["chance", "positives", "of"]
        named = self.first.class_names is not None
        order = self._sorted(self.shown, -self.gain[0])
        rows = [
            [
                str(self.first.number_in_data(c)),
                self.first.class_name(c) if named else "",
                *(f"{value:.4f}" for value in self.values[:, c]),
                *(f"{value:.4f}" for value in self.gain[:, c]),
                f"{self.chance[c]:.4f}",
                f"{self.positives[c]:,}",
                f"{self.rated[c]:,}",
            ]
            for c in order[:_TABLE_ROWS].tolist()
        ]
        which = "All" if len(rows) == len(self.shown) else f"The best {len(rows)} of"
        return PageTable(
            head,
            rows,
            numeric=(0, *range(2, len(head))),
            summary=f"{which} {len(self.shown)} classes as a table ({self.title})",
            searchable=True,
            unfolded=True,
        )
