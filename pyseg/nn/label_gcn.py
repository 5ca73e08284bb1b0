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
from pyseg.nn.init import he_truncated_normal_
from pyseg.nn.label_graph import Adjacency, DenseGraph, SparseGraph, make_graph, matrix, register
from pyseg.nn.linear import linear

if TYPE_CHECKING:
    from pyseg.labels import LabelCorrelation


NODE_SIZE = 300
"""ML-GCN's number of features of a label, that of word vectors."""


class LabelGCN(DerivedWeights):
    """Makes the weights of linear classifiers from a graph of the labels: logits = x W^T (+ b).

    Every label is a node with D features X; two graph convolutions turn them into classifiers::

        W = A f(A X W1) W2 (+ W0), f = LeakyReLU of slope 0.2, W1 (D, D1), W2 (D1, H)

    The graph A starts from the label correlation P' with self loops. With `adjacency` "rows" every
    row is divided by its sum, so that node i averages over the labels that label i implies. With
    "ml-gcn", only whether P' is above 0 counts: a label has the weight 1 - p and its neighbors
    share p = 0.2, and A is normalised symmetrically by the sums of the rows; that smooths less.
    With "identity" there is no graph, and every label has a perceptron of its features alone. The
    paper trains A ("the matrix here is trained by model"); ML-GCN, where the rest comes from, does
    not. Without a correlation A starts from the self loops alone. Node features are learnt unless
    given (ML-GCN: word vectors of the labels' names, not trained); the paper does not say what they
    are. `pyseg.labels.embed_labels` computes some.

    W0 is not in the paper: linear classifiers of the usual kind, to which the graph adds what
    related labels have in common.

    All classifiers share W1 and W2, and the inputs of A. So a step of Adam, which changes every
    number alike, changes the logits much more than one on linear classifiers, and the loss can
    rise a hundredfold. `learning_rate_factors` makes these steps smaller: one on any group of
    weights changes a logit at most by about `step_share` of what one on linear classifiers does.

    Training never forms W: logits^T = A (f(A X W1) (W2 x^T)) takes far fewer operations for any
    usual batch. In eval mode, where no gradient is needed, W is formed once, and again after a
    parameter has changed (`DerivedWeights`); programs of torch.compile and torch.export keep the
    order of training. An untrained graph given as a `LabelCorrelation` stays sparse, and so does a
    trained one with `sparse_graph`: no (C, C) matrix is formed.

    Source: the paper, section 3.4; Chen et al., Multi-Label Image Recognition with Graph
    Convolutional Networks (ML-GCN), 2019, equation (8) for its graph, and models.py, lines 7-83,
    for sizes, f, initialisation U(+-1/sqrt(out)) and the missing bias.

    Args:
        in_features: size H of the input.
        num_classes: number of classes C.
        correlation: P': a `LabelCorrelation`, or a (C, C) matrix, finite and >= 0, whose diagonal
            is ignored. ``None``: no relations.
        node_features: (C, D) features of the labels, finite. ``None``: N(0, 1), to be learnt.
        node_size: the size D where `node_features` is not given.
        gcn_size: the size D1 between the two convolutions.
        adjacency: how A starts, "rows", "ml-gcn" or "identity".
        train_graph: whether A is trained.
        sparse_graph: whether a trained A keeps the zeros that it starts with.
        train_nodes: whether X is trained.
        linear_share: the share in [0, 1) of W0 in the initial variance of the classifiers, which
            is then that of `LogisticHead`. 0: there is no W0, and W starts as ML-GCN initialises
            it.
        step_share: see above, above 0. ``None``: all weights learn at the same rate.
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
        linear: (C, H) W0, or ``None``.
        step_factors: the factors of `learning_rate_factors`, or ``None``.

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
    step_factors: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        correlation: LabelCorrelation | Tensor | np.ndarray | None = None,
        node_features: Tensor | np.ndarray | None = None,
        *,
        node_size: int = NODE_SIZE,
        gcn_size: int = 1024,
        adjacency: Adjacency = "rows",
        train_graph: bool = True,
        sparse_graph: bool = False,
        train_nodes: bool = True,
        linear_share: float = 0.0,
        step_share: float | None = 0.1,
        bias: bool = False,
        prior: float = 0.5,
    ) -> None:
        super().__init__()
        check_num_classes(num_classes)
        for name, size in (("node_size", node_size), ("gcn_size", gcn_size)):
            if size < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {size}")
        if not 0.0 <= linear_share < 1.0:
            raise ArgumentError(
                f"linear_share: expected a number from 0 to below 1, found {linear_share}"
            )
        if step_share is not None and not 0.0 < step_share < float("inf"):
            raise ArgumentError(f"step_share: expected a finite number above 0, found {step_share}")
        if node_features is None:
            nodes = torch.randn(num_classes, node_size)
        else:
            nodes = matrix("node_features", node_features, (num_classes, None))
        self.graph = make_graph(
            correlation, num_classes, adjacency=adjacency, trained=train_graph, sparse=sparse_graph
        )
        register(self, "nodes", nodes, train_nodes)
        self.first = nn.Parameter(_uniform(nodes.shape[1], gcn_size))
        self.second = nn.Parameter(_uniform(gcn_size, in_features))
        start = torch.full((num_classes,), prior_logit(prior))
        self.bias = nn.Parameter(start) if bias else None
        self.linear: nn.Parameter | None = None
        if linear_share:
            self._add_linear(linear_share)
        # Saved with the weights, since it is of the first ones.
        self.register_buffer("step_factors", None)
        if step_share is not None:
            self.step_factors = self._smaller_steps(step_share)

    def _add_linear(self, share: float) -> None:
        """Adds W0, and brings both parts to their share of the variance of linear classifiers."""
        size = self.second.shape[1]
        weight = he_truncated_normal_(self.second.new_empty(self.nodes.shape[0], size), size)
        if weight.device.type != "meta":
            with torch.no_grad():
                found = self.classifiers().square().mean().sqrt()
                self.second.mul_((2.0 * (1.0 - share) / size) ** 0.5 / found.clamp(min=1e-12))
                weight *= share**0.5
        self.linear = nn.Parameter(weight)

    @torch.no_grad()
    def _smaller_steps(self, share: float) -> Tensor:
        """Returns the factors of the learning rates of `_shared`, from the initial weights."""
        size = self.second.shape[1]
        hidden, smooth = self._hidden(), self.graph(self.graph(self.nodes))
        # The largest change of a logit by a step that changes every number by 1, relative to that
        # by a step on W, for inputs of independent N(0, 1); f halves what passes it, roughly.
        at_hidden = 0.5 * self.second.norm(dim=1)
        changes: dict[str, Tensor] = {
            "nodes": 0.5 * (self.first @ self.second).norm(dim=1).sum() / size,
            "first": smooth.abs().sum(1).mean() * at_hidden.sum() / size,
            "second": self.graph(hidden).abs().sum(1).mean(),
        }
        if isinstance(self.graph, (DenseGraph, SparseGraph)):
            name = "graph.weight" if isinstance(self.graph, DenseGraph) else "graph.values"
            # Twice, as A comes twice.
            changes[name] = 2.0 * self.graph.reach((hidden @ self.second).norm(dim=1)) / size
        return torch.stack([share / changes[name].clamp(min=share) for name in self._shared()])

    def _shared(self) -> list[str]:
        """Returns the parameters that smaller steps are for."""
        shared = ("nodes", "first", "second", "graph.weight", "graph.values")
        trained = dict(self.named_parameters())
        return [name for name in shared if name in trained]

    def learning_rate_factors(self) -> dict[str, float]:
        """Returns the factors that `pyseg.nn.learning_rate_groups` asks for."""
        if self.step_factors is None or self.step_factors.device.type == "meta":
            return {}
        return dict(zip(self._shared(), self.step_factors.tolist(), strict=True))

    def regularized(self) -> tuple[Tensor, ...]:
        """Returns what `l2_penalty` counts: W1, W2, which the reference does not have, and W0."""
        return (self.first, self.second, *([] if self.linear is None else [self.linear]))

    def select_classes(self, classes: Tensor) -> dict[str, Tensor]:
        """Returns the state of a head for some of the classes, (n,) int64, in their order.

        The graph is restricted to them.

        Raises:
            ValueError: the graph is sparse.
        """
        if isinstance(self.graph, SparseGraph):
            raise ArgumentError("classes: expected all, as the label graph is sparse")
        rows = {"nodes": self.nodes, "bias": self.bias, "linear": self.linear}
        state = {name: each[classes] for name, each in rows.items() if each is not None}
        if isinstance(self.graph, DenseGraph):
            state["graph.weight"] = self.graph.weight[classes][:, classes]
        return state

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
        if self.linear is not None:
            return logits + linear(x, self.linear, self.bias).to(logits.dtype)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def classifiers(self) -> Tensor:
        """Forms the classifiers W.

        Returns:
            (C, H).
        """
        generated = self.graph(self._hidden()) @ self.second
        return generated if self.linear is None else generated + self.linear

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
            f"linear={self.linear is not None}, bias={self.bias is not None}"
        )


def _uniform(rows: int, columns: int) -> Tensor:
    bound = 1.0 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound)
