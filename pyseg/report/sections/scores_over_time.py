"""The section on the scores of some videos over time."""

from __future__ import annotations

from collections.abc import Sequence

from pyseg.report.config import ReportConfig
from pyseg.report.page import Figure, PageTable, Section
from pyseg.report.runs import ReportedRun, not_evaluated
from pyseg.timeline import Timeline
from pyseg.timeline.page import data, peak_table


def scores_over_time(runs: Sequence[ReportedRun], config: ReportConfig) -> Section:
    """Returns the section."""
    section = Section(
        "Scores over time",
        "Probabilities of every segment, and the ratings, of the videos with the most ratings "
        f"among {config.evaluated_on}; the classes with the highest scores, and the rated ones.",
        missing=not_evaluated(runs),
    )
    for run in runs:
        if run.evaluation is not None and not run.evaluation.has_frames:
            section.missing.append(f"{run.name}: mean features of whole videos have no time.")
        elif run.evaluation is not None and not run.evaluation.rated:
            section.missing.append(f"{run.name}: no segment is rated; the first videos by id.")
        section.figures += [
            Figure(
                "strips",
                f"{timeline.title}, by {run.name}" if len(runs) > 1 else timeline.title,
                f"Scores of {timeline.title} over time by {run.name}",
                data(timeline, timeline.events()),
                "Height: score, 0 to 1. Line below: event. Frames: rated positive (solid green), "
                "rated negative (dotted red).",
                _peaks(timeline),
                wide=True,
            )
            for timeline in run.timelines
        ]
    return section


def _peaks(timeline: Timeline) -> PageTable:
    """Returns the highest score of each class and its time."""
    table = peak_table(timeline)
    return PageTable(table.head, table.rows, table.numeric, summary="Highest scores as a table")
