"""What mixed precision does to the metrics and the ranking of a run, measured on a CPU.

    python benchmarks/measure_precision.py RUN

The held-out examples of the run are scored in float32, bfloat16 and float16, and with linear
layers, small ones too, that multiply 8-bit integers. Products of 16 bits round their inputs and
results and sum in float32, as a GPU's do; left to itself a CPU may keep float32 inputs
(`pyseg.nn.linear`). "in common" is the share of a class's best 100 examples (--top) that float32
has among its best, "moved" how far a rank is from that in float32, in hundredths of the examples;
"values" is the number of distinct scores of a class among 1,000 examples. Those are means over the
classes. "probability" is the largest change of a probability, calibrated if the run is, of all
examples and classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, cast, get_args

import numpy as np
import torch

from pyseg import _cli, _int8
from pyseg._precision import PrecisionName
from pyseg._table import Table
from pyseg.evaluate import label_metrics, predictions, rank_ratings
from pyseg.ops import _dispatch
from pyseg.predict.classes import probabilities
from pyseg.results import RatedResult
from pyseg.runs import Run, open_data


def main() -> None:
    """Prints a table with a row for each precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--top", type=int, default=100, help="examples to have in common")
    args = parser.parse_args()
    top = args.top
    _dispatch._SLOW_BFLOAT16 = False
    _int8._FEWEST_WEIGHTS = 0
    run = Run(args.run)
    model = cast(Any, run.model())
    collection = open_data(run.config())
    classes = run.known_classes(model.num_classes)
    segments = collection.segments("test", classes=classes)
    dataset = collection.videos("test", classes=classes) if segments is None else segments
    scored = list(predictions(model, dataset, precision="fp32"))
    exact, best = _ranks(scored, top)
    certain = _probabilities(run, scored)
    rows = []
    for precision in get_args(PrecisionName):
        scored = list(predictions(model, dataset, precision=precision))
        if segments is None:
            found = label_metrics(scored, model.num_classes)
            metrics = [f"{found.map:.5f}", f"{found.gap:.5f}"]
        else:
            rated = RatedResult.of(rank_ratings(scored, model.num_classes))
            metrics = [f"{rated.map:.5f}", ""]
        ranks, _ = _ranks(scored, top)
        among = np.take_along_axis(ranks, best, axis=0) < top
        some = np.concatenate([logits for _, logits in scored])[:1000].T
        rows.append(
            (
                precision,
                *metrics,
                f"{among.mean():.4f}",
                f"{100 * np.abs(ranks - exact).mean() / len(ranks):.3f}",
                f"{np.mean([len(np.unique(column)) for column in some]):.0f}",
                f"{np.abs(_probabilities(run, scored) - certain).max():.4f}",
            )
        )
    print(f"{len(exact)} examples, {model.num_classes} classes of {run}, the best {top}")
    head = ("precision", "MAP", "GAP@20", "in common", "moved", "values", "probability")
    print(Table(head, rows, numeric=range(1, len(head))).markdown())


def _ranks(scored: Sequence[tuple[Any, np.ndarray]], top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rank of every example within each class, and the best examples."""
    order = np.argsort(-np.concatenate([logits for _, logits in scored]), axis=0, kind="stable")
    return np.argsort(order, axis=0), order[:top]


def _probabilities(run: Run, scored: Sequence[tuple[Any, np.ndarray]]) -> np.ndarray:
    """Returns the probabilities (S, C) of all examples."""
    logits = torch.from_numpy(np.concatenate([logits for _, logits in scored]))
    return probabilities(logits, run.calibration(logits.shape[1])).numpy()


if __name__ == "__main__":
    _cli.run(main)
