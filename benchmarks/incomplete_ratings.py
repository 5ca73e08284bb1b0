"""What reweighting and label correlation teach where each video has a single rating.

    python benchmarks/incomplete_ratings.py --data shared/data/yt8m [--seeds 3] [--steps 1500]

Real YouTube-8M features and labels, ratings made incomplete on purpose, as those of segments are.
Video-level records count as videos of one frame; the classes are the 1,000 whose segments were
rated. Videos are split 70/30. A training video keeps one rated class: with probability 0.56 (as in
the release of 2019) one of its labels, else a class that it does not have, drawn from what
co-occurs with one of its labels. Test videos keep their complete labels. Co-occurrence is counted
on the label lists of `labelsets.csv.gz` less all videos of the shards. The model is a perceptron of
two layers; the figures are MAP over the classes with at least 3 test positives, and the standard
error of their mean over the seeds.

    plain           cross-entropy, what is not rated counts as 0 with weight 1
    reweighting     rated classes 2.5, others 0.1 (equations 2 and 3)
    + correlation   and what a rated class says of others as targets (equations 4 to 6)
    complete        plain, on the complete labels of the same videos: the ceiling
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pyseg.data import VideoDataset, youtube8m
from pyseg.labels import CooccurrenceCounter, LabelCorrelation, read_label_table
from pyseg.metrics import map_at_k_dense
from pyseg.ops import rated_bce_with_logits

POSITIVE = 132_442 / 237_788  # of the ratings of the release of 2019
BATCH = 256


class Ragged:
    """Lists of classes with scores, one a row."""

    def __init__(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.rows = rows

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        classes, scores = zip(*(self.rows[i] for i in indices), strict=True)
        offsets = np.concatenate(([0], np.cumsum([len(row) for row in classes])))
        flat = np.concatenate(classes), np.concatenate(scores)
        return tuple(torch.from_numpy(a) for a in (offsets, *flat))


def read(folder: Path, classes: list[int]) -> tuple[Tensor, list[np.ndarray], list[str]]:
    """Returns features, labels among `classes`, and all ids, also of videos without such labels."""
    place = {number: index for index, number in enumerate(classes)}
    features, labels, ids = [], [], []
    for video in VideoDataset(str(folder / "video_level_validate*.tfrecord.gz")):
        ids.append(video.id)
        kept = [place[c] for c in video.classes.tolist() if c in place]
        if kept:
            features.append(video.frames[0])
            labels.append(np.array(kept))
    return torch.from_numpy(np.stack(features)), labels, ids


def count(folder: Path, without: list[str]) -> CooccurrenceCounter:
    counter = CooccurrenceCounter(youtube8m.NUM_CLASSES)
    for lists in read_label_table(folder / "labelsets.csv.gz", exclude=without):
        counter.update(lists.offsets, lists.labels)
    return counter


def rate(
    labels: list[np.ndarray], related: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns one rated class a video, and its score."""
    classes, scores = [], []
    for present in labels:
        chances = related[random.choice(present)].copy()
        chances[present] = 0
        positive = random.random() < POSITIVE or chances.sum() == 0
        if positive:
            classes.append(random.choice(present))
        else:
            classes.append(random.choice(len(chances), p=chances / chances.sum()))
        scores.append(float(positive))
    return np.array(classes), np.array(scores, np.float32)


def train(
    features: Tensor, ratings: Ragged, classes: int, steps: int, seed: int, **loss: object
) -> nn.Module:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.Linear(features.shape[1], 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(1024, classes),
    )  # fmt: skip
    nn.init.constant_(model[-1].bias, -6.0)  # nearly all classes are absent
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        indices = random.integers(0, len(features), BATCH)
        value = rated_bce_with_logits(model(features[indices]), *ratings.batch(indices), **loss)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threshold", type=float, default=0.5)
    options = parser.parse_args()
    classes = youtube8m.read_segment_vocabulary(options.data / "segment_vocabulary.csv").classes
    features, labels, ids = read(options.data, classes)
    counted = count(options.data, ids).finish()
    related = LabelCorrelation.from_counts(counted, 0.0, classes).dense().double().numpy()
    correlation = LabelCorrelation.from_counts(counted, options.threshold, classes)
    print(f"videos: {len(features)}; counted on {counted.num_videos} others: {correlation}")
    results: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        random = np.random.default_rng(seed)
        order = random.permutation(len(features))
        trained, tested = np.split(order, [int(0.7 * len(order))])
        rated, scores = rate([labels[i] for i in trained], related, random)
        one = Ragged([(rated[i : i + 1], scores[i : i + 1]) for i in range(len(trained))])
        complete = Ragged([(labels[i], np.ones(len(labels[i]), np.float32)) for i in trained])
        truth = np.zeros((len(tested), len(classes)), bool)
        for row, video in enumerate(tested):
            truth[row, labels[video]] = True
        enough = truth.sum(0) >= 3
        plain = {"rated_weight": 1.0, "unrated_weight": 1.0}
        recipes = {
            "plain": (one, plain),
            "reweighting": (one, {}),
            "+ correlation": (one, {"correlation": correlation}),
            "complete": (complete, plain),
        }
        for name, (ratings, loss) in recipes.items():
            model = train(features[trained], ratings, len(classes), options.steps, seed, **loss)
            with torch.no_grad():
                logits = model(features[tested]).numpy()
            result = map_at_k_dense(logits[:, enough], truth[:, enough])
            results.setdefault(name, []).append(result.map)
    for name, values in results.items():
        mean, spread = np.mean(values), np.std(values, ddof=1 if len(values) > 1 else 0)
        each = " ".join(f"{value:.3f}" for value in values)
        print(f"{name:14} MAP {mean:.3f} +- {spread / len(values) ** 0.5:.3f}  ({each})")


if __name__ == "__main__":
    main()
