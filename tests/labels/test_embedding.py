"""Label embeddings against a dense singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseg.labels import Cooccurrence, count_cooccurrence, embed_labels, embedding

CLASSES = 130


def counts(classes: int = CLASSES, videos: int = 3000, seed: int = 0) -> Cooccurrence:
    """Counts of lists with labels of one of ten groups, the first ones often, and some others."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 6, videos)
    group = np.repeat(random.integers(0, 10, videos), lengths)
    group = np.where(random.random(len(group)) < 0.2, random.integers(0, 10, len(group)), group)
    labels = (random.zipf(1.4, len(group)) * 10 + group) % classes
    return count_cooccurrence(np.concatenate(([0], np.cumsum(lengths))), labels, classes)


def information(counted: Cooccurrence) -> np.ndarray:
    """Positive pointwise mutual information, from the dense counts."""
    pairs = counted.pairs.astype(float)
    independent = np.outer(counted.counts, counted.counts) / counted.num_videos
    ratio = np.divide(pairs, independent, out=np.ones_like(pairs), where=pairs > 0)
    return np.log(ratio).clip(0)


def products(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


@pytest.fixture(params=["dense", "iterated"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "iterated":
        monkeypatch.setattr(embedding, "_DENSE", 0)
    return request.param


@pytest.mark.parametrize("size", [1, 7, 20])
def test_embedding_is_the_truncated_svd(way: str, size: int) -> None:
    counted = counts()
    u, s, _ = np.linalg.svd(information(counted))
    expected = u[:, :size] * np.sqrt(s[:size])
    expected *= np.sqrt(size) / np.linalg.norm(expected, axis=1, keepdims=True)
    found = embed_labels(counted, size)
    assert found.dtype == torch.float32
    assert found.shape == (CLASSES, size)
    # Singular vectors are unique but for their signs.
    np.testing.assert_allclose(
        products(found.numpy()), products(expected), rtol=0, atol=2e-6 * size
    )


def test_signs_do_not_depend_on_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = counts()
    dense = embed_labels(counted, 12)
    monkeypatch.setattr(embedding, "_DENSE", 0)
    iterated = embed_labels(counted, 12)
    torch.testing.assert_close(iterated, dense, rtol=0, atol=1e-5)
    assert torch.equal(embed_labels(counted, 12), iterated)


def test_labels_that_never_occur_have_zeros(way: str) -> None:
    """The matrix then has fewer eigenvalues than the iteration has vectors."""
    few = counts(classes=20)
    more = Cooccurrence(
        few.num_videos,
        np.concatenate((few.counts, np.zeros(CLASSES - 20, np.int64))),
        np.concatenate((few.offsets, np.full(CLASSES - 20, few.offsets[-1]))),
        few.columns,
        few.values,
    )
    found = embed_labels(more, 8)
    assert not found[20:].any()
    torch.testing.assert_close(products(found[:20]), products(embed_labels(few, 8)))


def test_equal_eigenvalues(way: str) -> None:
    """Labels that never come together, all as often: the matrix is a multiple of the identity."""
    found = embed_labels(count_cooccurrence(range(CLASSES + 1), range(CLASSES), CLASSES), 5)
    lengths = found.norm(dim=1)
    assert ((lengths == 0) | ((lengths - 5**0.5).abs() < 1e-5)).all()
    assert (lengths > 0).sum() >= 5


def test_labels_of_a_group_are_alike() -> None:
    found = embed_labels(counts(), 10)
    cosines = products(found) / 10
    same = torch.arange(CLASSES) % 10
    same = same[:, None] == same
    assert cosines[same].mean() > 0.7
    assert cosines[~same].mean().abs() < 0.1


@pytest.mark.parametrize("size", [0, CLASSES + 1])
def test_size_is_checked(size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"size: expected 1\.\.{CLASSES} \(labels\), found {size}"
    ):
        embed_labels(counts(), size)
