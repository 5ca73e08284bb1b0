"""A head whose classifiers come from two graph convolutions over the labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg.errors import ArgumentError
from pyseg.nn.derived import DerivedWeights
from pyseg.nn.head import check_num_classes, prior_logit
from pyseg.nn.linear import linear

if TYPE_CHECKING:
    from pyseg.labels import LabelCorrelation


class LabelGCN(DerivedWeights):
    """Makes the weights of linear classifiers from a graph of the labels: logits = x W^T (+ b).

    Every label is a node with D features X; two graph convolutions turn them into classifiers::

        W = A f(A X W1) W2, f = LeakyReLU of slope 0.2, W1 (D, D1), W2 (D1, H)

    The graph A starts as the label correlation P' with self loops, every row divided by its sum,
    so that node i averages over the labels that label i implies. The paper trains it ("the matrix
    here is trained by model"); ML-GCN, where the rest comes from, does not. Without a correlation
    it starts from the self loops alone. Node features are learnt unless given (ML-GCN: word vectors
    of the labels' names, not trained); the paper does not say what they are.

    Training never forms W: logits^T = A (f(A X W1) (W2 x^T)) takes far fewer operations for any
    usual batch. In eval mode, where no gradient is needed, W is formed once, and again after a
    parameter has changed (`DerivedWeights`); programs of torch.compile and torch.export keep the
    order of training. An untrained graph given as a `LabelCorrelation` stays sparse: no (C, C)
    matrix is formed.

    Source: the paper, section 3.4; Chen et al., Multi-Label Image Recognition with Graph
    Convolutional Networks (ML-GCN), 2019, models.py, lines 7-83, for sizes, f, initialisation
    U(+-1/sqrt(out)) and the missing bias.

    Args:
        in_features: size H of the input.
        num_classes: number of classes C.
        correlation: P': a `LabelCorrelation`, or a (C, C) matrix, finite and >= 0, whose diagonal
            is ignored. ``None``: no relations.
        node_features: (C, D) features of the labels, finite. ``None``: N(0, 1), to be learnt.
        node_size: the size D where `node_features` is not given.
        gcn_size: the size D1 between the two convolutions.
        train_graph: whether A is trained.
        train_nodes: whether X is trained.
        bias: whether there is a bias b.
        prior: initial probability of every class, see `LogisticHead`.

    Raises:
        TypeError: `correlation` or `node_features` is of a type that does not fit.
        ValueError: a size does not fit, a value is out of its range, or an untrained graph has no
            relations.

    Attributes:
        graph: module that multiplies by A from the left.
        nodes: (C, D) X; a parameter if it is trained, else a buffer.
        first: (D, D1) W1.
        second: (D1, H) W2.

    Example:
        >>> from pyseg.labels import LabelCorrelation
        >>> implied = LabelCorrelation(torch.tensor([0, 1, 1, 1]), torch.tensor([1]), torch.ones(1))
        >>> head = LabelGCN(32, num_classes=3, correlation=implied, node_size=8, gcn_size=16)
        >>> head(torch.randn(6, 32)).shape
        torch.Size([6, 3])
        >>> head.graph.weight.tolist()  # label 0 implies label 1
        [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    nodes: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        correlation: LabelCorrelation | Tensor | np.ndarray | None = None,
        node_features: Tensor | np.ndarray | None = None,
        *,
        node_size: int = 300,
        gcn_size: int = 1024,
        train_graph: bool = True,
        train_nodes: bool = True,
        bias: bool = False,
        prior: float = 0.5,
    ) -> None:
        super().__init__()
        check_num_classes(num_classes)
        for name, size in (("node_size", node_size), ("gcn_size", gcn_size)):
            if size < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {size}")
        if node_features is None:
            nodes = torch.randn(num_classes, node_size)
        else:
            nodes = _matrix("node_features", node_features, (num_classes, None))
        self.graph = _make_graph(correlation, num_classes, train_graph)
        _register(self, "nodes", nodes, train_nodes)
        self.first = nn.Parameter(_uniform(nodes.shape[1], gcn_size))
        self.second = nn.Parameter(_uniform(gcn_size, in_features))
        start = torch.full((num_classes,), prior_logit(prior))
        self.bias = nn.Parameter(start) if bias else None

    def regularized(self) -> tuple[Tensor, ...]:
        """Returns what `l2_penalty` counts: W1 and W2, which the reference does not have."""
        return self.first, self.second

    def select_classes(self, classes: Tensor) -> dict[str, Tensor]:
        """Returns the state of a head for some of the classes, (n,) int64, in their order.

        The graph is restricted to them.

        Raises:
            ValueError: the graph is sparse.
        """
        if not isinstance(self.graph, _DenseGraph):
            raise ArgumentError(
                "classes: expected all, as the label graph is sparse and not trained"
            )
        state = {
            "nodes": self.nodes[classes],
            "graph.weight": self.graph.weight[classes][:, classes],
        }
        return state if self.bias is None else {**state, "bias": self.bias[classes]}

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            x: (B, H).

        Returns:
            (B, C) logits; probabilities are their sigmoid.
        """
        if self._may_cache():
            return linear(x, self._cached(self.classifiers), self.bias)
        scores = (x @ self.second.t()) @ self._hidden().t()
        logits = self.graph(scores.t()).t()
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def classifiers(self) -> Tensor:
        """Forms the classifiers W.

        Returns:
            (C, H).
        """
        return self.graph(self._hidden()) @ self.second

    def _hidden(self) -> Tensor:
        if self.first.shape[0] <= self.first.shape[1]:  # the graph acts on the smaller side
            nodes = self.graph(self.nodes) @ self.first
        else:
            nodes = self.graph(self.nodes @ self.first)
        return functional.leaky_relu(nodes, 0.2)

    def extra_repr(self) -> str:
        """Returns the geometry for `repr`."""
        (classes, node_size), (gcn_size, features) = self.nodes.shape, self.second.shape
        return (
            f"{features}, num_classes={classes}, node_size={node_size}, gcn_size={gcn_size}, "
            f"bias={self.bias is not None}"
        )


class _DenseGraph(nn.Module):
    """A as a matrix (C, C)."""

    weight: Tensor

    def __init__(self, relations: Tensor, trained: bool) -> None:
        super().__init__()
        with_loops = relations.clone().fill_diagonal_(1.0)
        _register(self, "weight", with_loops / with_loops.sum(1, keepdim=True), trained)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, trained={isinstance(self.weight, nn.Parameter)}"


class _SparseGraph(nn.Module):
    """A as compressed sparse rows, which are not trained."""

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, correlation: LabelCorrelation) -> None:
        super().__init__()
        classes = torch.arange(correlation.num_classes, device=correlation.device)
        rows = torch.cat((correlation.rows(), classes))
        columns = torch.cat((correlation.columns, classes))
        values = torch.cat((correlation.values, torch.ones_like(classes, dtype=torch.float32)))
        order = (rows * len(classes) + columns).argsort()
        sums = torch.zeros_like(classes, dtype=torch.float32).index_add_(0, rows, values)
        loops = torch.arange(len(classes) + 1, device=correlation.device)
        self.register_buffer("offsets", correlation.offsets + loops)
        self.register_buffer("columns", columns[order])
        self.register_buffer("values", (values / sums[rows])[order])

    def forward(self, x: Tensor) -> Tensor:
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

    def extra_repr(self) -> str:
        return f"{len(self.offsets) - 1}, entries={len(self.values)}"


def _make_graph(
    correlation: LabelCorrelation | Tensor | np.ndarray | None, num_classes: int, trained: bool
) -> nn.Module:
    if correlation is None:
        if not trained:
            raise ArgumentError("correlation: expected one, as the graph shall not be trained")
        return _DenseGraph(torch.zeros(num_classes, num_classes), trained)
    if isinstance(correlation, (Tensor, np.ndarray)):
        relations = _matrix("correlation", correlation, (num_classes, num_classes))
        if relations.device.type != "meta" and bool((relations < 0).any()):
            raise ArgumentError(
                f"correlation: expected numbers >= 0, found {relations.min().item()}"
            )
        return _DenseGraph(relations, trained)
    from pyseg.labels import LabelCorrelation

    if not isinstance(correlation, LabelCorrelation):
        raise TypeError(
            "correlation: expected a LabelCorrelation or a matrix, "
            f"found {type(correlation).__name__}"
        )
    if correlation.num_classes != num_classes:
        raise ArgumentError(
            f"correlation: expected {num_classes} classes, found {correlation.num_classes}"
        )
    return _DenseGraph(correlation.dense(), trained) if trained else _SparseGraph(correlation)


def _matrix(name: str, value: Tensor | np.ndarray, shape: tuple[int, int | None]) -> Tensor:
    """Returns a float32 copy of a matrix, checked."""
    if not isinstance(value, (Tensor, np.ndarray)):
        raise TypeError(f"{name}: expected a Tensor or an array, found {type(value).__name__}")
    expected = "({}, {})".format(*("any" if size is None else size for size in shape))
    fits = len(value.shape) == 2 and value.shape[1] > 0
    if not fits or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
        raise ArgumentError(f"{name}: expected shape {expected}, found {tuple(value.shape)}")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected numbers, found {value.dtype}")
    matrix = torch.as_tensor(value).detach().to(torch.float32, copy=True)
    if matrix.device.type != "meta" and not bool(matrix.isfinite().all()):
        raise ArgumentError(f"{name}: expected finite numbers")
    return matrix


def _uniform(rows: int, columns: int) -> Tensor:
    bound = 1.0 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound)


def _register(module: nn.Module, name: str, value: Tensor, trained: bool) -> None:
    if trained:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)
