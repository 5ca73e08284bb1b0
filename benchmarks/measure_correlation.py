"""How well P says what else a video has, on label lists that it was not counted on.

    python benchmarks/measure_correlation.py labelsets.csv.gz [audioset]

A number is the negative log-likelihood, in nats, of all other labels of a held-out list given one
of them: the mean over lists and given labels, where P_ij is the probability of label j given i. Of
the first file, YouTube-8M's label lists, a tenth is held out, and P is counted on more and more of
the others; of the folder `audioset` three tenths of the clips are held out, with their weak labels.

Counted probabilities can be 0 or 1, which no list may contradict. All but those of the Beta prior
are therefore kept at a distance from both, the one of `DISTANCES` that is best for the held-out
lists: more than they can know.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from pyseg._table import Table
from pyseg.data import open_collection, read_label_table
from pyseg.labels import (
    Cooccurrence,
    LabelCorrelation,
    count_cooccurrence,
    prior_strength,
)
from pyseg.train._data import count_labels

CLASSES = 3862
SIZES = (3_000, 30_000, 300_000)
DISTANCES = (1e-3, 1e-4, 1e-5, 1e-6)


def nats(p: np.ndarray, held_out: Cooccurrence) -> float:
    """Returns the negative log-likelihood of the labels of held-out lists.

    Args:
        p: (C, C) probabilities in (0, 1) off the diagonal.
        held_out: The counts of the held-out lists, which are all that it depends on.
    """
    p, pairs = p.copy(), held_out.pairs
    np.fill_diagonal(p, 0.5)
    np.fill_diagonal(pairs, 0)
    absent = np.log1p(-p)
    given = held_out.counts[:, None] - np.eye(len(p)) * held_out.counts
    return float(-((given - pairs) * absent + pairs * np.log(p)).sum() / held_out.counts.sum())


def rows(counted: Cooccurrence, held_out: Cooccurrence) -> Iterator[tuple[str, float]]:
    """Yields the name and the number of each way to estimate P, and the strength of the prior."""

    def at_a_distance(p: np.ndarray) -> float:
        return min(nats(p.clip(d, 1 - d), held_out) for d in DISTANCES)

    def matrix(threshold: float = 0.0, **options: float) -> np.ndarray:
        return LabelCorrelation.from_counts(counted, threshold, **options).dense().numpy()

    strength = prior_strength(counted)
    of = counted.counts[:, None]
    yield "base rates", at_a_distance(np.tile(counted.rates, (counted.num_classes, 1)))
    for threshold in (0.5, 0.1, 0.0):
        yield f"τ = {threshold:g}", at_a_distance(matrix(threshold))
    yield "τ = 0, pairs of 3 videos or more", at_a_distance(matrix(min_support=3))
    yield "Beta prior, seen pairs", at_a_distance(matrix(prior=strength))
    # A label that was never counted has a rate above 0 too.
    smooth = (counted.counts[None] + 0.5) / (counted.num_videos + 1)
    yield (
        "Beta prior, all pairs",
        nats((counted.pairs + strength * smooth) / (of + strength), held_out),
    )
    yield "its strength", strength


def youtube8m(table: str) -> Iterator[tuple[str, Cooccurrence, Cooccurrence]]:
    """Yields name, counted and held-out lists of each size."""
    blocks = list(read_label_table(table))
    sizes = np.concatenate([np.diff(block.offsets) for block in blocks])
    labels = np.split(np.concatenate([block.labels for block in blocks]), np.cumsum(sizes)[:-1])
    order = np.random.default_rng(0).permutation(len(labels))
    tenth = len(labels) // 10

    def count(videos: np.ndarray) -> Cooccurrence:
        chosen = [labels[video] for video in videos]
        offsets = np.cumsum([0, *map(len, chosen)])
        return count_cooccurrence(offsets, np.concatenate(chosen), CLASSES)

    held_out, others = count(order[:tenth]), order[tenth:]
    for size in (*SIZES, len(others)):
        yield f"YouTube-8M, {size:,} lists", count(others[:size]), held_out


def audioset(folder: str) -> tuple[str, Cooccurrence, Cooccurrence]:
    """Returns name, counted and held-out lists of the weak labels."""
    collection = open_collection(folder, test_fraction=0.3)
    counted, held_out = count_labels(collection), count_labels(collection, part="test")
    return f"AudioSet, {counted.num_videos:,} lists", counted, held_out


def main() -> None:
    """Prints the table."""
    columns = list(youtube8m(sys.argv[1])) + [audioset(folder) for folder in sys.argv[2:]]
    values = [dict(rows(counted, held_out)) for _, counted, held_out in columns]
    table = [[name, *(f"{column[name]:.2f}" for column in values)] for name in values[0]]
    head = ["", *(name for name, _, _ in columns)]
    print(Table(head, table, numeric=range(1, len(head))).markdown())


if __name__ == "__main__":
    main()
