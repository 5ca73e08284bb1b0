"""What mixed precision does to the metrics and the ranking of a run, measured on a CPU.

    python benchmarks/measure_precision.py RUN [TOP]

The held-out examples of the run are scored in float32, bfloat16 and float16. Products round their
inputs and results and sum in float32, as a GPU's do; left to itself a CPU may keep float32 inputs
(`pyseg.nn.linear`). "in common" is the share of a class's best TOP examples (default: 100) that
float32 has among its best, "moved" how far a rank is from that in float32, in hundredths of the
examples; "values" is the number of distinct scores of a class among 1,000 examples. Those are means
over the classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast, get_args

import numpy as np

from pyseg._precision import PrecisionName
from pyseg._table import Table
from pyseg.evaluate import label_metrics, predictions, rank_ratings
from pyseg.ops import _dispatch
from pyseg.runs import Run, open_data


def main(folder: str, top: str = "100") -> None:
    """Prints a table with a row for each precision."""
    _dispatch._SLOW_BFLOAT16 = False
    run = Run(folder)
    model = cast(Any, run.model())
    collection = open_data(run.config())
    classes = run.known_classes(model.num_classes)
    segments = collection.segments("test", classes=classes)
    dataset = collection.videos("test", classes=classes) if segments is None else segments
    judge = label_metrics if segments is None else rank_ratings
    scored = list(predictions(model, dataset, precision="fp32"))
    exact, best = _ranks(scored, int(top))
    rows = []
    for precision in get_args(PrecisionName):
        scored = list(predictions(model, dataset, precision=precision))
        result: Any = judge(scored, model.num_classes)
        ranks, _ = _ranks(scored, int(top))
        among = np.take_along_axis(ranks, best, axis=0) < int(top)
        some = np.concatenate([logits for _, logits in scored])[:1000].T
        rows.append(
            (
                precision,
                *(f"{getattr(result, name, float('nan')):.5f}" for name in ("map", "gap")),
                f"{among.mean():.4f}",
                f"{100 * np.abs(ranks - exact).mean() / len(ranks):.3f}",
                f"{np.mean([len(np.unique(column)) for column in some]):.0f}",
            )
        )
    print(f"{len(exact)} examples, {model.num_classes} classes of {run}, the best {top}")
    head = ("precision", "MAP", "GAP@20", "in common", "moved", "values")
    print(Table(head, rows, numeric=range(1, len(head))).markdown())


def _ranks(scored: Sequence[tuple[Any, np.ndarray]], top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rank of every example within each class, and the best examples."""
    order = np.argsort(-np.concatenate([logits for _, logits in scored]), axis=0, kind="stable")
    return np.argsort(order, axis=0), order[:top]


if __name__ == "__main__":
    main(*sys.argv[1:])
