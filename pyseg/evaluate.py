"""How good a trained run is: ``python -m pyseg.evaluate --run <folder> --data <...>``.

Two questions, by what the data says of its videos:

* rated segments: MAP@100,000 (paper, eq. 7), the ranking of a class taken over its rated segments;
* video labels: GAP@20, Hit@1, PERR and MAP over complete label lists.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pyseg import _cli, metrics, models
from pyseg.config import open_data, read_run_config
from pyseg.data import Collection, loader
from pyseg.data.collection import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils.data import IterableDataset

    from pyseg.data import Batch


@dataclass
class EvaluateConfig:
    """What to evaluate, on what.

    Args:
        run: The run folder that `pyseg.train` wrote.
        data: Records as a folder, glob or file, or "sample"; default: what the run was trained on.
        part: Which videos: those that the run held out ("test"), its training videos, or all.
        batch_size: Examples scored at once.
        workers: Processes that read ahead; 0 reads in this process.
        device: "cpu", "cuda", ...; default: a GPU where there is one.
    """

    run: str
    data: str | None = None
    part: Part = "test"
    batch_size: int = 128
    workers: int = 0
    device: str | None = None


@dataclass(frozen=True)
class Scores:
    """A model's scores on labelled examples, in the order in which they were read.

    Attributes:
        logits: (n, C) float32.
        offsets: (n + 1,) int64: example i is labelled with ``classes[offsets[i]:offsets[i + 1]]``.
        classes: (R,) int64, the rated classes or the labels.
        relevance: (R,) float32, the rating of each; 1 for labels.
    """

    logits: np.ndarray
    offsets: np.ndarray
    classes: np.ndarray
    relevance: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """(R,) int64: the example that each of ``classes`` belongs to."""
        return np.repeat(np.arange(len(self.logits)), np.diff(self.offsets))


def pick_device(name: str | None) -> torch.device:
    """Returns the named device, or by default a GPU where there is one, else the CPU.

    Raises:
        pyseg._cli.UserError: There is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        told = str(error).splitlines()[0]
        raise _cli.UserError(f"--device {name}: expected a device here, found: {told}") from error
    return device


@torch.no_grad()
def score(
    model: nn.Module,
    dataset: IterableDataset,
    *,
    batch_size: int = 128,
    workers: int = 0,
    progress: str | None = None,
) -> Scores:
    """Returns the scores of a model, in inference mode, on every example of a data set.

    Args:
        model: ``model(frames, num_frames) -> logits (B, C)``; its mode is restored afterwards.
        dataset: Yields `pyseg.data.Example`.
        batch_size: Examples scored at once; scores do not depend on it but for rounding.
        workers: Processes that read ahead.
        progress: The name of the progress bar, shown on a terminal; none without a name.

    Raises:
        pyseg._cli.UserError: The data set is empty.
    """
    from tqdm import tqdm

    device = next(model.parameters()).device
    logits: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    relevance: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    was_training = model.training
    model.eval()
    try:
        # None: only on a terminal.
        hidden = None if progress else True
        with tqdm(desc=progress, unit=" examples", disable=hidden, leave=False) as bar:
            batch: Batch
            for batch in loader(dataset, batch_size, workers=workers):
                frames = batch.frames.to(device, non_blocking=True)
                output = model(frames, batch.num_frames.to(device, non_blocking=True))
                logits.append(output.float().cpu().numpy())
                classes.append(batch.classes.numpy())
                relevance.append(batch.scores.numpy())
                counts.append(batch.offsets.diff().numpy())
                bar.update(len(batch))
    finally:
        model.train(was_training)
    if not logits:
        raise _cli.UserError("there is nothing to evaluate: the data set has no example")
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return Scores(
        np.concatenate(logits), offsets, np.concatenate(classes), np.concatenate(relevance)
    )


def rated_metrics(scores: Scores, num_rated_classes: int | None = None) -> dict[str, Any]:
    """Returns MAP@100k over rated (segment, class) pairs: paper eq. (7).

    ``map`` is the mean over the classes that have a rated positive; ``map_all_classes`` the sum
    over them divided by the number of classes, as in the challenge, where a class without a
    positive counts 0.

    Args:
        scores: Of rated segments.
        num_rated_classes: The classes of the task, 1,000 in the challenge; default: all C.
    """
    num_classes = scores.logits.shape[1]
    result = metrics.map_at_k(
        scores.classes,
        scores.logits[scores.rows, scores.classes],
        scores.relevance > 0.5,
        num_classes=num_classes,
        empty_classes="skip",
    )
    return {
        "map": result.map,
        "map_all_classes": float(result.per_class.sum()) / (num_rated_classes or num_classes),
        "classes": int((result.positives > 0).sum()),
        "rated": len(scores.classes),
        "positives": int(result.positives.sum()),
        "examples": len(scores.logits),
    }


def label_metrics(scores: Scores) -> dict[str, Any]:
    """Returns GAP@20, Hit@1, PERR and MAP against complete label lists (semantics of eval_util.py).

    ``map`` is the mean over the classes that occur.
    """
    labels = np.zeros(scores.logits.shape, dtype=bool)
    labels[scores.rows, scores.classes] = True
    probabilities = torch.from_numpy(scores.logits).sigmoid().numpy()
    return {
        "gap": metrics.gap_at_k(scores.logits, labels, k=20),
        "hit_at_1": metrics.hit_at_1(probabilities, labels),
        "perr": metrics.perr(probabilities, labels),
        "map": metrics.map_at_k_dense(scores.logits, labels, empty_classes="skip").map,
        "classes": int(labels.any(axis=0).sum()),
        "examples": len(labels),
    }


def evaluate(
    model: nn.Module,
    collection: Collection,
    part: Part,
    *,
    batch_size: int = 128,
    workers: int = 0,
) -> dict[str, Any]:
    """Returns the metrics of a model on one part of a collection.

    Rated segments decide where the collection has them, complete video labels otherwise.
    """
    segments = collection.segments(part)
    scores = score(
        model,
        collection.videos(part) if segments is None else segments,
        batch_size=batch_size,
        workers=workers,
        progress="evaluate",
    )
    if segments is None:
        return label_metrics(scores)
    rated_classes = collection.segment_classes
    return rated_metrics(scores, len(rated_classes) if rated_classes else None)


def describe(result: dict[str, Any]) -> str:
    """Returns metrics as the line that the commands print."""
    if "rated" in result:
        return (
            f"MAP@100k {result['map']:.4f} "
            f"(mean over {result['classes']} classes with a positive; {result['rated']} ratings "
            f"of {result['examples']} segments, {result['positives']} positive)"
        )
    return (
        f"GAP@20 {result['gap']:.4f}, Hit@1 {result['hit_at_1']:.4f}, PERR {result['perr']:.4f}, "
        f"MAP {result['map']:.4f} "
        f"({result['examples']} videos, {result['classes']} classes that occur)"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.evaluate``."""
    parser = _cli.make_parser(EvaluateConfig, "pyseg.evaluate", "Evaluates a trained run.")
    config = _cli.parse(parser, EvaluateConfig, argv)
    run = Path(config.run)
    trained = read_run_config(run)
    with _cli.user_errors():
        model: Any = models.load(run).to(pick_device(config.device))
        collection = open_data(trained, config.data)
    expected = model.feature_sizes, model.config.num_classes
    found = collection.feature_sizes, collection.num_classes
    if expected != found:
        raise _cli.UserError(
            f"--data {config.data}: expected features of the sizes {expected[0]} and {expected[1]} "
            f"classes, which {run} was trained on; found {found[0]} and {found[1]}"
        )
    result = evaluate(
        model,
        collection,
        config.part,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    print(describe(result))
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as log:
        data = config.data or trained.data
        log.write(json.dumps({"stage": "evaluate", "data": data, "part": config.part, **result}))
        log.write("\n")


if __name__ == "__main__":
    _cli.run(main)
