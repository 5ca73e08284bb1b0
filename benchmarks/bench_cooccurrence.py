"""Speed of counting label pairs, against SciPy, a Counter, and pandas for the reading.

    pytest benchmarks/bench_cooccurrence.py [--benchmark-json FILE]

The label lists are those of ``data/yt8m/labelsets.csv.gz`` below the folder PYSEG_SHARED (default
``../shared``), 980,029 videos of YouTube-8M; without that file, similar ones are generated.
`counting` and `prior` start from lists in memory, `prior` ends with the matrix of all pairs, in
processor time; `file` starts from the .csv.gz file and ends with the saved matrix. Results are
medians of contenders that take turns; all give the same counts.
"""

from __future__ import annotations

import collections
import gzip
import itertools
import os
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import scipy.sparse

from pyseg.data import read_label_table
from pyseg.labels import (
    Cooccurrence,
    CooccurrenceCounter,
    LabelCorrelation,
    count_cooccurrence,
)

CLASSES = 3862
THRESHOLD = 0.5
REAL = Path(os.environ.get("PYSEG_SHARED", "../shared")) / "data" / "yt8m" / "labelsets.csv.gz"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    if REAL.is_file():
        return REAL
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("lists") / "labelsets.csv.gz"
    lengths = random.poisson(2, 980_029) + 1
    labels = ((random.zipf(1.4, lengths.sum()) - 1) % CLASSES).astype(str)
    ends = np.cumsum(lengths)
    with gzip.open(path, "wt", compresslevel=6) as file:
        for video, (end, length) in enumerate(zip(ends, lengths, strict=True)):
            file.write(f"{video:07x},{' '.join(labels[end - length : end])}\n")
    return path


@pytest.fixture(scope="module")
def lists(table) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(read_label_table(table))
    sizes = np.concatenate([np.diff(block.offsets) for block in blocks])
    labels = np.concatenate([block.labels for block in blocks])
    return np.concatenate(([0], np.cumsum(sizes))), labels


def by_scipy(offsets: np.ndarray, labels: np.ndarray) -> scipy.sparse.csr_matrix:
    shape = len(offsets) - 1, CLASSES
    videos = scipy.sparse.csr_matrix((np.ones(len(labels), np.int64), labels, offsets), shape)
    return videos.T @ videos


def by_counter(offsets: np.ndarray, labels: np.ndarray) -> collections.Counter:
    flat, ends = labels.tolist(), offsets.tolist()
    counter: collections.Counter = collections.Counter()
    for begin, end in itertools.pairwise(ends):
        counter.update(itertools.combinations(flat[begin:end], 2))
    return counter


def test_counting(compare, lists):
    counted = count_cooccurrence(*lists, CLASSES)
    expected = by_scipy(*lists)
    assert (counted.pairs != expected.toarray()).sum() == 0
    compare(
        {
            "pyseg": lambda: count_cooccurrence(*lists, CLASSES),
            "SciPy": lambda: by_scipy(*lists),
            "Counter": lambda: by_counter(*lists),
        }
    )


@pytest.mark.benchmark(timer=time.process_time)
def test_prior(compare, lists):
    def matrix(prior: float | Literal["fit"]) -> LabelCorrelation:
        counted = count_cooccurrence(*lists, CLASSES)
        return LabelCorrelation.from_counts(counted, 0.0, prior=prior)

    compare(
        {
            "counting alone": lambda: count_cooccurrence(*lists, CLASSES),
            "to the matrix": lambda: matrix(0.0),
            "with a fitted prior": lambda: matrix("fit"),
        },
        timer=time.process_time,
    )


def test_file(compare, table, tmp_path):
    pandas = pytest.importorskip("pandas")

    def pyseg() -> Cooccurrence:
        counter = CooccurrenceCounter(CLASSES)
        for block in read_label_table(table):
            counter.update(block.offsets, block.labels)
        correlation = LabelCorrelation.from_counts(counter.finish(), THRESHOLD)
        correlation.save(tmp_path / "pyseg.npz")
        return counter.finish()

    def pandas_scipy() -> None:
        frame = pandas.read_csv(table, header=None, names=["id", "labels"], dtype=str)
        split = frame["labels"].fillna("").str.split()
        offsets = np.concatenate(([0], np.cumsum(split.str.len())))
        labels = split.explode().dropna().astype(np.int64).to_numpy()
        pairs = by_scipy(offsets, labels).tocoo()
        counts = pairs.tocsr().diagonal()
        probability = pairs.data / counts[pairs.row]
        kept = (probability >= THRESHOLD) & (pairs.row != pairs.col)
        entries = probability[kept], (pairs.row[kept], pairs.col[kept])
        matrix = scipy.sparse.csr_matrix(entries, (CLASSES, CLASSES))
        scipy.sparse.save_npz(tmp_path / "scipy.npz", matrix)

    compare({"pyseg": pyseg, "pandas + SciPy": pandas_scipy})
    own = LabelCorrelation.load(tmp_path / "pyseg.npz").dense().numpy()
    np.testing.assert_allclose(
        own, scipy.sparse.load_npz(tmp_path / "scipy.npz").toarray(), rtol=1e-6
    )
