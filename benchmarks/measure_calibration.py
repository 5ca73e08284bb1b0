"""How good calibration and chosen thresholds are on AudioSet, whose held-out labels are complete.

    python benchmarks/measure_calibration.py audioset [runs]

Three models are trained (seeds 0 to 2, each with its own split), and kept in the folder `runs` if
one is named. Half of the held-out clips give random answers, about a segment and a class each; the
other half, with all of its labels, judges the probabilities, and the events of windows that slide
by one frame. An event is found if an event of the class overlaps it by half of their union.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression

from pyseg import train
from pyseg._table import Table
from pyseg.calibration import Calibration
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import read_frames
from pyseg.data.audioset import FRAME_SECONDS, clip_name
from pyseg.metrics import reliability
from pyseg.runs import Run, open_data
from pyseg.timeline import Timeline

SEEDS = (0, 1, 2)
ANSWERS = (300, 1000, 3000, 30000)
FRAMES, SIZE = 10, 5
SEGMENTS = [0, 5]  # of the windows of a clip


def logits_and_truth(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits (V, windows, C) of held-out clips, and what their frames have (V, T, C)."""
    collection, model, classes = open_data(run.config()), run.model(), run.rated_classes()
    split, segments = collection.split("test"), collection.segments("test", cache=False)
    numbers: Any = segments
    column = {id: classes.index(n) for id, n in numbers.class_numbers.items() if n in classes}
    logits, truth = [], []
    for path in collection.video_paths:
        for record in read_frames(
            path, collection.features.schema, context_keys=("start_time_seconds",)
        ):
            if len(record.frames) < FRAMES or not split(path, record.id):
                continue
            frames = torch.from_numpy(record.frames).unfold(0, SIZE, 1).transpose(1, 2)
            with torch.inference_mode():
                logits.append(model(frames.contiguous())[:, classes].numpy())
            shown = np.zeros((FRAMES, len(classes)), bool)
            clip = clip_name(record.id, float(record.context["start_time_seconds"]))
            for label, intervals in numbers.strong.get(clip, {}).items():
                for start, end in intervals if label in column else ():
                    begin = np.arange(FRAMES) * FRAME_SECONDS
                    overlap = np.minimum(begin + FRAME_SECONDS, end) - np.maximum(begin, start)
                    shown[:, column[label]] |= overlap >= FRAME_SECONDS / 2
            truth.append(shown)
    return np.stack(logits).astype(np.float64), np.stack(truth)


def stretches(shown: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields first frame and end of each stretch of a class."""
    change = np.diff(shown.astype(int), prepend=0, append=0)
    yield from zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1), strict=True)


def f1_of(probabilities: np.ndarray, truth: np.ndarray, **thresholds: Any) -> dict[str, float]:
    """Returns the F1 of frames and of events, over all together and as a mean over classes."""
    classes = truth.shape[2]
    counts = {name: np.zeros((3, classes)) for name in ("frames", "events")}  # hits, found, shown
    starts = np.arange(probabilities.shape[1], dtype=float)
    names = [str(c) for c in range(classes)]
    for scores, shown in zip(probabilities, truth, strict=True):
        timeline = Timeline("clip", starts, starts + SIZE, scores, names)
        expected = {c: list(stretches(shown[:, c])) for c in np.flatnonzero(shown.any(0)).tolist()}
        found = np.zeros_like(shown)
        for c, some in expected.items():
            counts["events"][2, c] += len(some)
        for event in timeline.events(**thresholds):
            start, end, c = int(event.start), int(event.end), event.number
            found[start:end, c] = True
            counts["events"][1, c] += 1
            for other in expected.get(c, []):
                common = min(end, other[1]) - max(start, other[0])
                if 2 * common >= max(end, other[1]) - min(start, other[0]):
                    counts["events"][0, c] += 1
                    expected[c].remove(other)
                    break
        counts["frames"] += (found & shown).sum(0), found.sum(0), shown.sum(0)
    result = {}
    for name, (hits, found, shown) in counts.items():
        occurs = shown > 0
        result[f"{name}, all"] = 2 * hits.sum() / (found + shown).sum()
        result[f"{name}, mean of classes"] = np.mean((2 * hits / (found + shown))[occurs])
    return result


def isotonic(z: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Returns probabilities by isotonic regression of all classes together."""
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(z, y)
    return np.clip(fitted.predict(new), 1e-6, 1 - 1e-6)


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    """Returns the mean negative logarithm of the probability of the truth."""
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return float(-np.where(y, np.log(p), np.log1p(-p)).mean())


def measure(run: Run, seed: int) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yields the name, the number of answers and the values of each row of the tables."""
    logits, truth = logits_and_truth(run)
    rng = np.random.default_rng(seed)
    asked, judged = np.array_split(rng.permutation(len(logits)), 2)
    halves = np.stack((truth[:, :SIZE].mean(1), truth[:, SIZE:].mean(1)), 1) >= 0.5
    raw = 1 / (1 + np.exp(-logits[judged]))
    relevant = halves[judged].ravel()
    yield "default", 0, f1_of(raw, truth[judged])
    before = reliability(raw[:, SEGMENTS].ravel(), relevant)
    own = logits[asked][:, SEGMENTS]
    for count in ANSWERS:
        drawn = rng.choice(own.size, count, replace=False)
        video, segment, c = np.unravel_index(drawn, own.shape)
        scores = halves[asked][video, segment, c]
        found = Calibration.fit(
            own[video, segment, c], c, scores, num_classes=logits.shape[2], groups=video
        ).with_thresholds(own.reshape(-1, logits.shape[2]))
        new = found.probabilities(logits[judged])
        p = new[:, SEGMENTS].ravel()
        after = reliability(p, relevant)
        moved = [z * found.slopes + found.biases for z in (own, logits[judged][:, SEGMENTS])]
        stepped = isotonic(moved[0].ravel()[drawn], scores, moved[1].ravel())
        yield (
            "probabilities",
            count,
            {
                "positive answers": float(scores.sum()),
                "error before": before.error,
                "after": after.error,
                "as told": found.after.error,
                "Brier before": before.brier,
                "Brier after": after.brier,
                "log loss before": log_loss(raw[:, SEGMENTS].ravel(), relevant),
                "log loss after": log_loss(p, relevant),
                "isotonic": log_loss(stepped, relevant),
            },
        )
        yield "chosen", count, f1_of(new, truth[judged], on=found.thresholds)
        yield "calibrated, 0.5", count, f1_of(new, truth[judged])


def main() -> None:
    """Prints the tables, means over the seeds with standard deviations."""
    data = sys.argv[1]
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(sys.argv[2] if len(sys.argv) > 2 else temporary)
        values = defaultdict(list)
        for seed in SEEDS:
            run = Run(runs / f"mlp-{seed}")
            if not run.config_file.is_file():
                stage = functools.partial(StageConfig, 400)
                train.train(
                    TrainConfig(
                        data=data,
                        run=str(run),
                        model="mlp",
                        seed=seed,
                        pretrain=stage(),
                        finetune=stage(),
                    )
                )
            for name, count, row in measure(run, seed):
                values[name, count].append(row)
    for kinds in (("probabilities",), ("default", "calibrated, 0.5", "chosen")):
        keys = {key: rows for key, rows in values.items() if key[0] in kinds}
        columns = list(next(iter(keys.values()))[0])
        table = [
            (name, str(count or ""), *(shown([row[c] for row in rows]) for c in columns))
            for (name, count), rows in sorted(keys.items(), key=lambda key: key[0][1])
        ]
        print(
            Table(("", "answers", *columns), table, numeric=range(1, len(columns) + 2)).markdown()
        )
        print()


def shown(values: list[float]) -> str:
    """Returns mean and standard deviation as text."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


if __name__ == "__main__":
    main()
