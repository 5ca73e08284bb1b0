"""Label correlation: the conditional probability P' of the paper."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyseg._containers import read_named_arrays
from pyseg._files import atomic_write
from pyseg._paths import path_text
from pyseg.errors import ArgumentError, DataError
from pyseg.labels.cooccurrence import Cooccurrence
from pyseg.labels.prior import prior_strength

if TYPE_CHECKING:
    import networkx
    import scipy.sparse


_LEAST = 1e-4  # of the probabilities given that a label is absent, most of which are tiny


class LabelCorrelation:
    """P', the probability of every label given another one; sparse.

    P'[i, j] = P(j | i) where that is at least the threshold, 0 elsewhere and on the diagonal
    (equations (4) and (5) of the paper).

    Args:
        offsets: (C + 1,) integers: row i's entries are ``offsets[i]:offsets[i + 1]``.
        columns: (nnz,) integers in 0..C-1, distinct within a row and never the row itself.
        values: (nnz,) numbers in [0, 1].

    Raises:
        TypeError: `offsets` or `columns` do not hold integers, or `values` no floating numbers.
        ValueError: The three do not fit together, or a number is out of its range.

    Attributes:
        offsets: int64.
        columns: int64, increasing within a row.
        values: float32.

    Example:
        >>> from pyseg.labels import count_cooccurrence
        >>> counted = count_cooccurrence([0, 2, 4, 5], [0, 1, 0, 1, 0], num_classes=3)
        >>> correlation = LabelCorrelation.from_counts(counted, threshold=0.5)
        >>> correlation.dense()[:2].tolist()  # 2 of the 3 videos with label 0 have label 1
        [[0.0, 0.6666666865348816, 0.0], [1.0, 0.0, 0.0]]
        >>> correlation.related(0)
        [(1, 0.6666666865348816)]
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, offsets: Tensor, columns: Tensor, values: Tensor) -> None:
        for name, tensor in (("offsets", offsets), ("columns", columns), ("values", values)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a Tensor, found {type(tensor).__name__}")
            if tensor.ndim != 1:
                raise ArgumentError(f"{name}: expected one dimension, found {tuple(tensor.shape)}")
            if tensor.is_floating_point() != (name == "values") or tensor.dtype == torch.bool:
                kind = "floating numbers" if name == "values" else "integers"
                raise TypeError(f"{name}: expected {kind}, found {tensor.dtype}")
        if len(columns) != len(values):
            raise ArgumentError(
                f"values: expected {len(columns)}, as there are columns, found {len(values)}"
            )
        offsets, columns = offsets.long(), columns.long()
        if values.device.type == "meta":  # no values to check: a model that is about to be loaded
            self.offsets, self.columns, self.values = offsets, columns, values.float()
            return
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(columns):
            found = f"{int(offsets[0])} to {int(offsets[-1])}" if len(offsets) else "none"
            raise ArgumentError(
                f"offsets: expected C + 1 numbers from 0 to {len(columns)} (columns), found {found}"
            )
        sizes = offsets.diff()
        if (sizes < 0).any():
            raise ArgumentError("offsets: expected them not to decrease")
        classes = len(sizes)
        _check_range(columns, values, classes)
        rows = torch.repeat_interleave(torch.arange(classes, device=sizes.device), sizes)
        if (rows == columns).any():
            wrong = int(rows[rows == columns][0])
            raise ArgumentError(
                f"columns: expected none on the diagonal, found row {wrong} in itself"
            )
        keys = rows * classes + columns
        if (keys.diff() <= 0).any():
            keys, order = keys.sort()
            if (keys.diff() == 0).any():
                wrong = int(keys[:-1][keys.diff() == 0][0])
                raise ArgumentError(
                    f"columns: expected each once in a row, found {wrong % classes} twice in "
                    f"row {wrong // classes}"
                )
            columns, values = columns[order], values[order]
        self.offsets, self.columns, self.values = offsets, columns, values.float()

    @classmethod
    def from_counts(
        cls,
        cooccurrence: Cooccurrence,
        threshold: float,
        classes: Sequence[int] | np.ndarray | Tensor | None = None,
        *,
        min_support: int = 1,
        prior: float | Literal["fit"] = 0.0,
    ) -> LabelCorrelation:
        """Computes P' from counts: P_ij = M_ij / N_i (eq. 4), 0 below the threshold (eq. 5).

        A label that never occurs has an empty row.

        With a prior of strength s, P_ij is (M_ij + s p_j) / (N_i + s) instead, with the base rate
        p_j of label j: the posterior mean, which is near the base rate where N_i is small, so that
        no threshold is needed against noise (`pyseg.labels.prior_strength`). Only pairs that were
        seen together are kept, as there are too many others for a sparse matrix; theirs would be
        s p_j / (N_i + s).

        Args:
            cooccurrence: the counts of `count_cooccurrence`.
            threshold: in [0, 1]; smaller probabilities are dropped (the paper: 0.5).
            classes: the labels to keep, in the order of the result; counts stay those of all
                videos. ``None``: all.
            min_support: pairs seen in fewer videos are dropped as noise, however probable.
            prior: the strength s in videos; "fit": the one that makes the counts most likely.

        Raises:
            ValueError: An argument is out of its range, or a class is named twice.

        Example:
            >>> from pyseg.labels import count_cooccurrence
            >>> counted = count_cooccurrence([0, 2, 3, 4, 5], [0, 1, 0, 2, 2], num_classes=3)
            >>> LabelCorrelation.from_counts(counted, 0.0).related(1)
            [(0, 1.0)]
            >>> LabelCorrelation.from_counts(counted, 0.0, prior=2).related(1)
            [(0, 0.6666666865348816)]
        """
        if not 0.0 <= threshold <= 1.0:
            raise ArgumentError(f"threshold: expected a number in [0, 1], found {threshold}")
        if min_support < 1:
            raise ArgumentError(f"min_support: expected at least 1, found {min_support}")
        if prior != "fit" and not (isinstance(prior, float | int) and 0 <= prior < math.inf):
            raise ArgumentError(f'prior: expected "fit" or at least 0, found {prior!r}')
        total = cooccurrence.num_classes
        kept = np.arange(total) if classes is None else np.asarray(classes)
        if kept.ndim != 1 or len(kept) == 0 or kept.dtype.kind not in "iu":
            raise ArgumentError("classes: expected the numbers of at least one class")
        if kept.min() < 0 or kept.max() >= total:
            wrong = kept[(kept < 0) | (kept >= total)][0]
            raise ArgumentError(f"classes: expected 0..{total - 1}, found {wrong}")
        place = np.full(total, -1)
        place[kept] = np.arange(len(kept))
        if (place >= 0).sum() != len(kept):
            values, times = np.unique(kept, return_counts=True)
            raise ArgumentError(f"classes: expected each once, found {values[times > 1][0]} again")
        rows, columns, together = cooccurrence.entries()  # M is symmetric, P is not
        strength = prior_strength(cooccurrence) if prior == "fit" else prior
        expected = strength * cooccurrence.rates[columns]
        probability = (together + expected) / (cooccurrence.counts[rows] + strength)
        wanted = (probability >= threshold) & (together >= min_support)
        wanted &= (place[rows] >= 0) & (place[columns] >= 0)
        rows, columns, probability = (
            place[rows[wanted]],
            place[columns[wanted]],
            probability[wanted],
        )
        order = np.argsort(rows * len(kept) + columns)
        sizes = np.bincount(rows, minlength=len(kept))
        return cls(
            torch.from_numpy(np.concatenate(([0], np.cumsum(sizes)))),
            torch.from_numpy(columns[order]),
            torch.from_numpy(probability[order]),
        )

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.values.device

    def dense(self) -> Tensor:
        """Returns P' as a (C, C) float32 matrix."""
        dense = torch.zeros(self.num_classes, self.num_classes, device=self.device)
        return dense.index_put_((self.rows(), self.columns), self.values)

    def rows(self) -> Tensor:
        """Returns the row of every entry: (nnz,) int64."""
        classes = torch.arange(self.num_classes, device=self.device)
        entries = len(self.columns)  # avoids a synchronisation with the device
        return torch.repeat_interleave(classes, self.offsets.diff(), output_size=entries)

    def to(self, device: torch.device | str) -> LabelCorrelation:
        """Returns a copy on another device."""
        moved = object.__new__(LabelCorrelation)
        moved.offsets, moved.columns = self.offsets.to(device), self.columns.to(device)
        moved.values = self.values.to(device)
        return moved

    def when_absent(self) -> LabelCorrelation:
        """Returns the probability of every label where another one was asked about and is absent.

        By Bayes' rule, with this model of the question: a video is asked about a label i because of
        one of its own labels, l, with a probability in proportion to P_li in row l; and i is absent
        with probability 1 - P_li. So it has that label l with probability::

            W_il  in proportion to  P_il (1 - P_li) / (sum over k of P_lk),  summing to 1 over l

        and label j with probability ``sum over l of W_il P_lj``, where P_ll = 1. Probabilities
        below 0.0001 are left out. The pairs must not be those above a threshold only, or little is
        known of l.

        Example:
            >>> offsets, columns = torch.tensor([0, 1, 3, 3]), torch.tensor([1, 0, 2])
            >>> asked = LabelCorrelation(offsets, columns, torch.tensor([0.5, 0.2, 0.4]))
            >>> asked.when_absent().related(0)  # label 0 was asked about because of label 1
            [(1, 1.0), (2, 0.4000000059604645)]
        """
        given = self.dense()
        totals = given.sum(1).clamp(min=torch.finfo(given.dtype).tiny)
        reasons = given * (1.0 - given.T) / totals
        reasons /= reasons.sum(1, keepdim=True).clamp(min=torch.finfo(given.dtype).tiny)
        found = (reasons @ given + reasons).clamp(max=1.0).fill_diagonal_(0.0)
        rows, columns = (found >= _LEAST).nonzero(as_tuple=True)
        sizes = torch.bincount(rows, minlength=self.num_classes)
        offsets = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
        return LabelCorrelation(offsets, columns, found[rows, columns])

    def related(self, label: int) -> list[tuple[int, float]]:
        """Returns the labels that `label` implies and their probabilities, largest first."""
        if not 0 <= label < self.num_classes:
            raise ArgumentError(f"label: expected 0..{self.num_classes - 1}, found {label}")
        part = slice(int(self.offsets[label]), int(self.offsets[label + 1]))
        values, order = self.values[part].sort(descending=True, stable=True)
        return list(zip(self.columns[part][order].tolist(), values.tolist(), strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a NumPy ``.npz`` file with the arrays offsets, columns and values."""
        with atomic_write(Path(path_text(path))) as file:
            np.savez_compressed(
                file,
                offsets=self.offsets.cpu().numpy(),
                columns=self.columns.cpu().numpy().astype(np.int32),
                values=self.values.cpu().numpy(),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelCorrelation:
        """Reads what `save` wrote. Nothing in the file is executed.

        Raises:
            DataError: The file holds something else; the message names it.
            OSError: It cannot be opened.
        """
        arrays = read_named_arrays(path, ("offsets", "columns", "values"))
        try:
            return cls(*map(torch.from_numpy, arrays))
        except (TypeError, ArgumentError) as error:
            raise DataError(f"{os.fspath(path)}: not a label correlation: {error}") from None

    def to_scipy(self) -> scipy.sparse.csr_array:
        """Returns P' as a `scipy.sparse.csr_array`."""
        import scipy.sparse

        arrays = (t.cpu().numpy() for t in (self.values, self.columns, self.offsets))
        return scipy.sparse.csr_array(tuple(arrays), shape=(self.num_classes,) * 2)

    def to_networkx(self, names: Sequence[str] | None = None) -> networkx.DiGraph:
        """Returns a directed graph with an edge i -> j of weight P'[i, j] for every entry.

        Args:
            names: (C,) names of the nodes. ``None``: their numbers.
        """
        import networkx

        graph = networkx.DiGraph()
        nodes: Sequence[Any] = range(self.num_classes) if names is None else names
        if len(nodes) != self.num_classes:
            raise ArgumentError(f"names: expected {self.num_classes}, found {len(nodes)}")
        graph.add_nodes_from(nodes)
        entries = zip(
            self.rows().tolist(), self.columns.tolist(), self.values.tolist(), strict=True
        )
        graph.add_weighted_edges_from((nodes[i], nodes[j], value) for i, j, value in entries)
        return graph

    def __repr__(self) -> str:
        """Shows the numbers of classes and relations."""
        return f"LabelCorrelation({self.num_classes} classes, {len(self.values)} relations)"


def _check_range(columns: Tensor, values: Tensor, classes: int) -> None:
    if not len(columns):
        return
    low, high = int(columns.min()), int(columns.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ArgumentError(f"columns: expected 0..{classes - 1}, found {wrong}")
    inside = (values >= 0) & (values <= 1)  # a NaN is not
    if not inside.all():
        raise ArgumentError(
            f"values: expected numbers in [0, 1], found {values[~inside][0].item()}"
        )
