"""Label embeddings: vectors that are alike where labels occur together."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyseg.errors import ArgumentError, DataError
from pyseg.labels.cooccurrence import Cooccurrence

_DENSE = 1024  # for up to so many labels, all eigenvectors take less than a second
_GROWTH = 1e15  # of a filter at the largest eigenvalue: more would lose the others to rounding
_HIGHEST_DEGREE = 20
_TOLERANCE = 1e-10  # of a residual, relative to the largest eigenvalue
_MOST_ROUNDS = 200


def embed_labels(cooccurrence: Cooccurrence, size: int) -> Tensor:
    """Makes a vector for every label from how often labels occur together.

    The inner products of the vectors approximate the positive pointwise mutual information of the
    labels, with V videos, N_i of them with label i and M_ij with both (M_ii = N_i)::

        I_ij = max(0, log(V M_ij / (N_i N_j))), I = U S U^T, E = |S|^(1/2) of the D largest |S|

    That is the singular value decomposition of a symmetric matrix, truncated. Then every vector is
    scaled to length sqrt(D), so that its entries have size 1. A label that never occurs has zeros.

    The result is exact up to rounding and the same in every call: eigenvectors are found to a
    residual of 1e-10 of the largest eigenvalue, and the largest entry of each is positive. 128
    numbers for each of the 3,862 labels of YouTube-8M take some seconds on one core.

    Source: Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization, 2014,
    section 3.3, for I and the symmetric square root of S. For large C the eigenvectors come from
    subspace iteration with a Chebyshev filter: Zhou, Saad, Tiago and Chelikowsky, Self-consistent-
    field calculations using Chebyshev-filtered subspace iteration, 2006, algorithm 4.3.

    Args:
        cooccurrence: the counts of `count_cooccurrence`.
        size: the size D of a vector, at most the number of labels C.

    Returns:
        (C, D) float32.

    Raises:
        ValueError: `size` is out of its range.

    Example:
        >>> from pyseg.labels import count_cooccurrence
        >>> counted = count_cooccurrence([0, 2, 4, 6, 8], [0, 1, 0, 1, 2, 3, 2, 3], num_classes=4)
        >>> vectors = embed_labels(counted, size=2)
        >>> (vectors @ vectors.T / 2).round().abs().tolist()  # 0 goes with 1, and 2 with 3
        [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    classes = cooccurrence.num_classes
    if not 1 <= size <= classes:
        raise ArgumentError(f"size: expected 1..{classes} (labels), found {size}")
    values, vectors = _largest_eigenpairs(_information(cooccurrence), size)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    embedded = vectors * torch.where(largest < 0, -1.0, 1.0) * values.abs().sqrt()
    lengths = embedded.norm(dim=1, keepdim=True)
    # Rounding leaves a label without a part in the D largest something to be scaled, too.
    seen = lengths > _TOLERANCE * lengths.max()
    return torch.where(seen, embedded * (size**0.5 / lengths), 0.0).float()


def _information(cooccurrence: Cooccurrence) -> Tensor:
    """Returns the positive pointwise mutual information I, sparse, float64."""
    classes = cooccurrence.num_classes
    rows, columns, pairs = cooccurrence.entries()
    labels = np.flatnonzero(cooccurrence.counts)
    rows, columns = np.concatenate((rows, labels)), np.concatenate((columns, labels))
    counts = cooccurrence.counts.astype(np.float64)  # whose products may exceed integers
    pairs = np.concatenate((pairs, counts[labels]))
    values = np.log(cooccurrence.num_videos * pairs / (counts[rows] * counts[columns])).clip(0.0)
    places = torch.from_numpy(np.stack((rows, columns)))
    matrix = torch.sparse_coo_tensor(
        places, torch.from_numpy(values), (classes, classes), check_invariants=True
    )
    return matrix.coalesce()


def _largest_eigenpairs(matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the eigenvalues (D,) of a symmetric matrix that are largest in size, and vectors."""
    classes = matrix.shape[0]
    width = size + max(32, size // 2)  # the further ones separate those that are wanted from others
    if classes <= max(_DENSE, 2 * width):
        values, vectors = torch.linalg.eigh(matrix.to_dense())
        order = values.abs().argsort(descending=True, stable=True)[:size]
        return values[order], vectors[:, order]
    # From numpy, whose numbers stay the same; as many vectors as eigenvalues, which may be equal.
    start = np.random.Generator(np.random.PCG64(0)).standard_normal((classes, width))
    vectors = torch.from_numpy(start)
    for _ in range(_MOST_ROUNDS):
        vectors = torch.linalg.qr(vectors).Q
        product = matrix @ vectors
        values, within = torch.linalg.eigh(vectors.T @ product)
        order = values.abs().argsort(descending=True, stable=True)
        values, within = values[order], within[:, order]
        vectors = vectors @ within
        residuals = (product @ within - vectors * values).norm(dim=0)
        if residuals[:size].max() <= _TOLERANCE * values[0].abs():
            return values[:size], vectors[:, :size]
        vectors = _filter(matrix, vectors, float(values[0].abs()), float(values[-1].abs()))
    raise DataError(f"size: expected label embeddings in {_MOST_ROUNDS} rounds, found none")


def _filter(matrix: Tensor, vectors: Tensor, largest: float, bound: float) -> Tensor:
    """Enlarges the parts of vectors whose eigenvalues are above a bound: T_n(matrix / bound) X."""
    bound = max(bound, largest / _GROWTH)
    degree = int(math.log(_GROWTH) / max(math.acosh(largest / bound), 1.0))
    before, now = vectors, (matrix @ vectors) / bound
    for _ in range(min(degree, _HIGHEST_DEGREE) - 1):
        before, now = now, (matrix @ now) * (2.0 / bound) - before
    return now
