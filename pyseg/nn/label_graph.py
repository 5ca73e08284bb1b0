"""The graph of a `LabelGCN`: matrices A over the labels, and how they start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg.errors import ArgumentError

if TYPE_CHECKING:
    from pyseg.labels import LabelCorrelation

Adjacency = Literal["rows", "ml-gcn", "identity"]

NEIGHBOR_SHARE = 0.2
"""What ML-GCN gives to the neighbors of a label together, its p."""


class DenseGraph(nn.Module):
    """A as a matrix (C, C).

    Args:
        weight: A.
        trained: whether it is a parameter.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, trained: bool) -> None:
        super().__init__()
        register(self, "weight", weight, trained)

    def forward(self, x: Tensor) -> Tensor:
        """Returns A x."""
        return self.weight @ x

    def reach(self, sizes: Tensor) -> Tensor:
        """Returns the sum of a label's neighbors' (C,) sizes, the mean over the labels.

        Any other label may become a neighbor.
        """
        return sizes.sum()

    def extra_repr(self) -> str:
        """Returns the geometry for `repr`."""
        return f"{self.weight.shape[0]}, trained={isinstance(self.weight, nn.Parameter)}"


class SparseGraph(nn.Module):
    """A as compressed sparse rows: entries that are 0 at first stay so.

    Args:
        relations: where it has entries beside the diagonal.
        values: (nnz,), these.
        loops: (C,), the diagonal.
        trained: whether the entries are a parameter.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(
        self, relations: LabelCorrelation, values: Tensor, loops: Tensor, trained: bool
    ) -> None:
        super().__init__()
        classes = torch.arange(relations.num_classes, device=relations.device)
        rows = torch.cat((relations.rows(), classes))
        columns = torch.cat((relations.columns, classes))
        order = (rows * len(classes) + columns).argsort()
        added = torch.arange(len(classes) + 1, device=relations.device)
        self.register_buffer("offsets", relations.offsets + added)
        self.register_buffer("columns", columns[order])
        register(self, "values", torch.cat((values, loops))[order], trained)

    def forward(self, x: Tensor) -> Tensor:
        """Returns A x."""
        # A weighted sum of rows x[columns]: CSR times dense, but traceable, and faster than
        # torch.sparse. It sums in the dtype of x, which must not be autocast's.
        return functional.embedding_bag(
            self.columns,
            x.to(self.values.dtype),
            self.offsets,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        ).to(x.dtype)

    def reach(self, sizes: Tensor) -> Tensor:
        """Returns the sum of a label's neighbors' (C,) sizes, the mean over the labels."""
        return sizes[self.columns].sum() / len(sizes)

    def extra_repr(self) -> str:
        """Returns the geometry for `repr`."""
        return (
            f"{len(self.offsets) - 1}, entries={len(self.values)}, "
            f"trained={isinstance(self.values, nn.Parameter)}"
        )


def make_graph(
    correlation: LabelCorrelation | Tensor | np.ndarray | None,
    num_classes: int,
    *,
    adjacency: Adjacency,
    trained: bool,
    sparse: bool,
) -> nn.Module:
    """Makes the module that multiplies by A; the arguments are those of `LabelGCN`."""
    from pyseg.labels import LabelCorrelation

    if adjacency not in get_args(Adjacency):
        known = ", ".join(get_args(Adjacency))
        raise ArgumentError(f"adjacency: expected one of {known}; found {adjacency!r}")
    if adjacency == "identity":
        return nn.Identity()
    if correlation is None:
        if not trained:
            raise ArgumentError("correlation: expected one, as the graph shall not be trained")
        correlation = LabelCorrelation(
            torch.zeros(num_classes + 1).long(), torch.zeros(0).long(), torch.zeros(0)
        )
    if isinstance(correlation, (Tensor, np.ndarray)):
        if sparse:
            raise TypeError("correlation: expected a LabelCorrelation for a sparse graph")
        relations = matrix("correlation", correlation, (num_classes, num_classes))
        if relations.device.type != "meta" and bool((relations < 0).any()):
            raise ArgumentError(
                f"correlation: expected numbers >= 0, found {relations.min().item()}"
            )
        return DenseGraph(_dense_start(relations.fill_diagonal_(0.0), adjacency), trained)
    if not isinstance(correlation, LabelCorrelation):
        raise TypeError(
            "correlation: expected a LabelCorrelation or a matrix, "
            f"found {type(correlation).__name__}"
        )
    if correlation.num_classes != num_classes:
        raise ArgumentError(
            f"correlation: expected {num_classes} classes, found {correlation.num_classes}"
        )
    if trained and not sparse:
        return DenseGraph(_dense_start(correlation.dense(), adjacency), trained)
    return SparseGraph(correlation, *_sparse_start(correlation, adjacency), trained)


def _dense_start(relations: Tensor, adjacency: Adjacency) -> Tensor:
    """Returns the first A of relations (C, C) without a diagonal."""
    if adjacency == "rows":
        return (relations + torch.eye(len(relations), device=relations.device)) / (
            1.0 + relations.sum(1, keepdim=True)
        )
    related = (relations > 0).to(relations.dtype)
    number = related.sum(1, keepdim=True)
    degree = _degree(number)
    shares = related * (NEIGHBOR_SHARE / number.clamp(min=1.0)) / (degree * degree.t()).sqrt()
    return shares + torch.diag((1.0 - NEIGHBOR_SHARE) / degree.squeeze(1))


def _sparse_start(relations: LabelCorrelation, adjacency: Adjacency) -> tuple[Tensor, Tensor]:
    """Returns the first entries of A, those of the relations and (C,) the diagonal."""
    values, rows = relations.values, relations.rows()
    none = values.new_zeros(relations.num_classes)
    if adjacency == "rows":
        loops = 1.0 / (1.0 + none.index_add(0, rows, values))
        return values * loops[rows], loops
    related = (values > 0).to(values.dtype)
    number = none.index_add(0, rows, related)
    degree = _degree(number)
    shares = related * (NEIGHBOR_SHARE / number.clamp(min=1.0))[rows]
    shares = shares / (degree[rows] * degree[relations.columns]).sqrt()
    return shares, (1.0 - NEIGHBOR_SHARE) / degree


def _degree(number: Tensor) -> Tensor:
    """Returns the sums of the rows of ML-GCN's re-weighted graph, by the number of neighbors."""
    return torch.where(number > 0, 1.0, 1.0 - NEIGHBOR_SHARE)


def matrix(name: str, value: Tensor | np.ndarray, shape: tuple[int, int | None]) -> Tensor:
    """Returns a float32 copy of a matrix, checked.

    Raises:
        TypeError: it is none.
        ValueError: it has another shape, where ``None`` is any size, or a number is not finite.
    """
    if not isinstance(value, (Tensor, np.ndarray)):
        raise TypeError(f"{name}: expected a Tensor or an array, found {type(value).__name__}")
    expected = "({}, {})".format(*("any" if size is None else size for size in shape))
    fits = len(value.shape) == 2 and value.shape[1] > 0
    if not fits or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
        raise ArgumentError(f"{name}: expected shape {expected}, found {tuple(value.shape)}")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected numbers, found {value.dtype}")
    found = torch.as_tensor(value).detach().to(torch.float32, copy=True)
    if found.device.type != "meta" and not bool(found.isfinite().all()):
        raise ArgumentError(f"{name}: expected finite numbers")
    return found


def register(module: nn.Module, name: str, value: Tensor, trained: bool) -> None:
    """Registers a parameter or, if it is not trained, a buffer."""
    if trained:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)
