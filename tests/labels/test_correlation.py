"""LabelCorrelation against equations (4) and (5), and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyseg.labels import LabelCorrelation, count_cooccurrence
from pyseg.labels.cooccurrence import Cooccurrence

LISTS = [[0, 1], [0, 1, 2], [0, 2], [0], [1], [3, 1], [2, 0, 1]]  # class 4 never occurs


@pytest.fixture
def counted() -> Cooccurrence:
    offsets = np.concatenate(([0], np.cumsum([len(labels) for labels in LISTS])))
    return count_cooccurrence(offsets, np.concatenate(LISTS), 5)


def by_definition(counted: Cooccurrence, threshold: float, min_support: int = 1) -> np.ndarray:
    pairs, counts = counted.pairs.astype(np.float64), counted.counts
    probability = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            if i != j and counts[i] and pairs[i, j] >= min_support:
                p = pairs[i, j] / counts[i]
                probability[i, j] = p if p >= threshold else 0.0
    return probability


@pytest.mark.parametrize("min_support", [1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.6, 1.0])
def test_is_the_papers_matrix(counted: Cooccurrence, threshold: float, min_support: int) -> None:
    correlation = LabelCorrelation.from_counts(counted, threshold, min_support=min_support)
    expected = by_definition(counted, threshold, min_support)
    np.testing.assert_allclose(correlation.dense().numpy(), expected, rtol=1e-7)
    assert (correlation.dense().diagonal() == 0).all()
    assert (correlation.values > 0).all()


def test_threshold_is_inclusive_and_a_label_that_never_occurs_implies_nothing(
    counted: Cooccurrence,
) -> None:
    assert counted.counts.tolist() == [5, 5, 3, 1, 0]
    at = LabelCorrelation.from_counts(counted, 3 / 5)  # P(1 | 0) is exactly 3/5
    assert at.related(0) == [(1, pytest.approx(0.6)), (2, pytest.approx(0.6))]
    assert LabelCorrelation.from_counts(counted, 0.6001).related(0) == []
    assert at.related(3) == [(1, 1.0)]
    assert at.related(4) == []


def test_classes_are_restricted_after_counting(counted: Cooccurrence) -> None:
    """3,862 -> 1,000: N and M stay those of all videos, rows and columns get the new order."""
    whole = LabelCorrelation.from_counts(counted, 0.3).dense()
    kept = [3, 1, 0]
    part = LabelCorrelation.from_counts(counted, 0.3, kept)
    assert torch.equal(part.dense(), whole[kept][:, kept])
    for classes in (np.array(kept), torch.tensor(kept)):
        assert torch.equal(
            LabelCorrelation.from_counts(counted, 0.3, classes).dense(), part.dense()
        )


def test_entries_are_sorted_whatever_their_order() -> None:
    correlation = LabelCorrelation(
        torch.tensor([0, 2, 2, 3]), torch.tensor([2, 1, 0]), torch.tensor([0.5, 0.25, 1.0]).double()
    )
    assert correlation.columns.tolist() == [1, 2, 0]
    assert correlation.values.tolist() == [0.25, 0.5, 1.0]
    assert correlation.values.dtype == torch.float32
    assert correlation.related(0) == [(2, 0.5), (1, 0.25)]
    assert repr(correlation) == "LabelCorrelation(3 classes, 3 relations)"


def test_round_trip_is_exact(counted: Cooccurrence, tmp_path: Path) -> None:
    correlation = LabelCorrelation.from_counts(counted, 0.3)
    correlation.save(tmp_path / "correlation.npz")
    other = LabelCorrelation.load(tmp_path / "correlation.npz")
    for name in ("offsets", "columns", "values"):
        assert torch.equal(getattr(other, name), getattr(correlation, name))
        assert getattr(other, name).dtype == getattr(correlation, name).dtype
    assert [path.name for path in tmp_path.iterdir()] == ["correlation.npz"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    path.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"file\.npz: expected a NumPy file, found a file that"):
        LabelCorrelation.load(path)
    np.savez(path, offsets=np.array([0, 1]))
    with pytest.raises(ValueError, match=r"file\.npz: expected the array columns, found offsets"):
        LabelCorrelation.load(path)
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(path, offsets=pickled, columns=pickled, values=pickled)
    with pytest.raises(ValueError, match=r"file\.npz: .*, found: an array of Python objects"):
        LabelCorrelation.load(path)
    np.savez(path, offsets=[0, 0, 2], columns=[0, 0], values=np.float32([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"correlation: columns: .*, found 0 twice in row 1"):
        LabelCorrelation.load(path)
    with pytest.raises(FileNotFoundError):
        LabelCorrelation.load(tmp_path / "absent.npz")


def test_exports(counted: Cooccurrence) -> None:
    networkx = pytest.importorskip("networkx")
    correlation = LabelCorrelation.from_counts(counted, 0.3)
    dense = correlation.dense().numpy()
    np.testing.assert_array_equal(correlation.to_scipy().toarray(), dense)
    graph = correlation.to_networkx()
    np.testing.assert_array_equal(networkx.to_numpy_array(graph, range(5)), dense)
    named = correlation.to_networkx(list("abcde"))
    assert named["a"]["b"]["weight"] == dense[0, 1]
    with pytest.raises(ValueError, match="names: expected 5, found 2"):
        correlation.to_networkx(["a", "b"])


def test_moves_to_a_device(counted: Cooccurrence) -> None:
    correlation = LabelCorrelation.from_counts(counted, 0.3)
    moved = correlation.to("meta")
    assert moved.device.type == moved.offsets.device.type == moved.columns.device.type == "meta"
    assert correlation.device.type == "cpu"
    shapes = LabelCorrelation(moved.offsets, moved.columns, moved.values)  # no value is read
    assert shapes.num_classes == correlation.num_classes
    assert shapes.dense().shape == correlation.dense().shape
    assert shapes.rows().shape == correlation.rows().shape


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([0, 1], [0], [0.5]), ValueError, "columns: expected none on the diagonal, found row 0"),
        (([0, 1, 1], [2], [0.5]), ValueError, r"columns: expected 0\.\.1, found 2"),
        (([0, 1, 1], [-1], [0.5]), ValueError, r"columns: expected 0\.\.1, found -1"),
        (([0, 1, 1], [1], [1.5]), ValueError, r"values: expected numbers in \[0, 1\], found 1\.5"),
        (([0, 1, 1], [1], [np.nan]), ValueError, r"values: .* found nan"),
        (([0, 1, 1], [1], [0.5, 0.5]), ValueError, "values: expected 1, as there are columns, f"),
        (([0, 2, 2], [1], [0.5]), ValueError, r"offsets: expected C \+ 1 .* to 1 .*found 0 to 2"),
        (([0, 2, 1, 2], [1, 2], [0.5, 0.5]), ValueError, "offsets: expected them not to decrease"),
        (([0, 2, 2], [1, 1], [0.5, 0.5]), ValueError, "columns: .*found 1 twice in row 0"),
        (([0, 1, 1], [1.0], [0.5]), TypeError, "columns: expected integers, found torch.float32"),
        (([0, 1, 1], [1], [1]), TypeError, "values: expected floating numbers, found torch.int64"),
        (([[0, 1]], [1], [0.5]), ValueError, r"offsets: expected one dimension, found \(1, 2\)"),
    ],
)
def test_bad_entries(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        LabelCorrelation(*(torch.tensor(argument) for argument in arguments))


def test_bad_arguments(counted: Cooccurrence) -> None:
    make = LabelCorrelation.from_counts
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"threshold: expected a number in \[0, 1\], found"):
            make(counted, threshold)
    with pytest.raises(ValueError, match="min_support: expected at least 1, found 0"):
        make(counted, 0.5, min_support=0)
    with pytest.raises(ValueError, match=r"classes: expected 0\.\.4, found 5"):
        make(counted, 0.5, [0, 5])
    with pytest.raises(ValueError, match="classes: expected each once, found 2 again"):
        make(counted, 0.5, [2, 1, 2])
    with pytest.raises(ValueError, match="classes: expected the numbers of at least one class"):
        make(counted, 0.5, [])
    with pytest.raises(ValueError, match=r"label: expected 0\.\.4, found 5"):
        make(counted, 0.5).related(5)
    with pytest.raises(TypeError, match="offsets: expected a Tensor, found list"):
        LabelCorrelation([0], [], [])


def test_what_an_absent_label_says_by_bayes_rule() -> None:
    """Against the sums of its definition, one by one."""
    given = torch.tensor(
        [[0.0, 0.5, 0.0, 0.1], [0.2, 0.0, 0.4, 0.0], [0.0, 1.0, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0]]
    )
    rows, columns = given.nonzero(as_tuple=True)
    offsets = torch.tensor([0, 2, 4, 5, 6])
    found = LabelCorrelation(offsets, columns, given[rows, columns]).when_absent().dense()
    for asked in range(4):
        reasons = {}
        for reason in range(4):
            if given[asked, reason] > 0:
                chance = given[asked, reason] * (1 - given[reason, asked])
                reasons[reason] = float(chance / given[reason].sum())
        for label in range(4):
            expected = 0.0
            for reason, chance in reasons.items():
                implied = 1.0 if label == reason else float(given[reason, label])
                expected += chance / sum(reasons.values()) * implied
            if label == asked:
                expected = 0.0
            assert float(found[asked, label]) == pytest.approx(expected, abs=1e-6)


def test_an_absent_label_that_nothing_suggests_says_nothing() -> None:
    nothing = LabelCorrelation(torch.zeros(4).long(), torch.zeros(0).long(), torch.zeros(0))
    assert len(nothing.when_absent().values) == 0
    always = LabelCorrelation(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.ones(2))
    assert len(always.when_absent().values) == 0  # it cannot be absent
