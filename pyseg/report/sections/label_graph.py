"""The section of the label correlation's graph (Figure 3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyseg.labels import LabelCorrelation
from pyseg.report.graph_chart import draw_graph
from pyseg.report.page import Figure, PageTable, Section
from pyseg.report.runs import ReportedRun, correlation_size

if TYPE_CHECKING:
    import networkx

GRAPH_NODES = 40
"""The most labels in the drawing of a correlation."""


def label_graphs(runs: Sequence[ReportedRun]) -> Section:
    """Returns the section."""
    section = Section(
        "Label graph",
        "P(label at the arrow's end | label at its start): the strongest relations of "
        "the label correlation that training used, from correlation.npz.",
    )
    drawn: dict[bytes, list[ReportedRun]] = {}
    for run in runs:
        correlation = run.correlation
        if correlation is None:
            section.missing.append(
                f"{run.name} used no label correlation (see --loss.correlation of pyseg.train)."
            )
        elif not len(correlation.values):
            section.missing.append(f"The label correlation of {run.name} has no relation.")
        else:
            parts = (correlation.offsets, correlation.columns, correlation.values)
            key = b"".join(part.numpy().tobytes() for part in parts)
            drawn.setdefault(key, []).append(run)
    section.figures += [_figure(same) for same in drawn.values()]
    return section


def _figure(runs: Sequence[ReportedRun]) -> Figure:
    """Draws the correlation of runs that have the same one."""
    correlation = runs[0].correlation
    assert correlation is not None
    graph = _subgraph(runs[0], correlation)
    names = ", ".join(run.name for run in runs)
    shown = (
        f"{graph.number_of_edges():,} of {correlation_size(correlation)}, those between the "
        f"{graph.number_of_nodes()} labels of the strongest ones"
    )
    rows = [(a, b, f"{weight:.3f}") for a, b, weight in _by_weight(graph)]
    return Figure(
        "graph",
        f"strongest relations: {names}",
        f"Label graph of {names}: "
        + "; ".join(f"{a} → {b} {weight:.2f}" for a, b, weight in _by_weight(graph)[:10]),
        draw_graph(graph),
        f"{names}: {shown}. Width: probability; orange: both ways.",
        PageTable(
            ("label", "implies", "P"),
            rows,
            numeric=(2,),
            summary=f"{len(rows):,} relations as a table",
            searchable=True,
        ),
        wide=True,
    )


def strongest(correlation: LabelCorrelation, nodes: int = GRAPH_NODES) -> list[int]:
    """Returns the labels of the strongest relations, in increasing order.

    Relations are taken by decreasing probability, ties in the order of their rows, while there is
    room for both of their labels.

    Args:
        correlation: The relations.
        nodes: The most labels.

    Example:
        >>> import torch
        >>> offsets, columns = torch.tensor([0, 2, 3, 3]), torch.tensor([1, 2, 2])
        >>> strongest(LabelCorrelation(offsets, columns, torch.tensor([0.5, 0.6, 0.9])), 2)
        [1, 2]
    """
    rows, columns = correlation.rows().tolist(), correlation.columns.tolist()
    chosen: set[int] = set()
    for entry in np.argsort(-correlation.values.numpy(), kind="stable").tolist():
        pair = {rows[entry], columns[entry]}
        if len(chosen | pair) > nodes:
            break
        chosen |= pair
    return sorted(chosen)


def _subgraph(run: ReportedRun, correlation: LabelCorrelation) -> networkx.DiGraph:
    """Returns the graph of the strongest relations, whose nodes are unique names of classes."""
    import networkx

    chosen = strongest(correlation)
    # Before fine-tuning, the model of a run for the rated classes has all classes.
    own = run.num_classes == correlation.num_classes
    names = {number: run.class_name(number) if own else f"class {number}" for number in chosen}
    if len(set(names.values())) < len(names):
        names = {number: f"{name} ({number})" for number, name in names.items()}
    graph = networkx.DiGraph()  # nodes in the order of the classes: the drawing depends on it
    graph.add_nodes_from(names[number] for number in chosen)
    for a in chosen:
        for b, weight in correlation.related(a):
            if b in names:
                graph.add_edge(names[a], names[b], weight=weight)
    return graph


def _by_weight(graph: networkx.DiGraph) -> list[tuple[str, str, float]]:
    """Returns the relations as two names and a probability, the strongest first."""
    return sorted(graph.edges(data="weight"), key=lambda edge: -edge[2])
