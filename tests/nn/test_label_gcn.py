"""LabelGCN: classifiers from two graph convolutions, in every order of the products."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyseg.labels import LabelCorrelation
from pyseg.nn import LabelGCN

CLASSES, FEATURES = 5, 6
# Class 2 implies nothing, and nothing implies class 4.
CORRELATION = LabelCorrelation(
    torch.tensor([0, 2, 3, 3, 4, 6]),
    torch.tensor([1, 3, 0, 2, 0, 1]),
    torch.tensor([0.5, 0.75, 1.0, 0.6, 0.9, 0.8]),
)
GRAPHS = ["dense", "sparse", "trained-sparse", "ml-gcn", "sparse-ml-gcn", "identity", "none"]
LIKE_ML_GCN = {"correlation": CORRELATION, "adjacency": "ml-gcn"}


def make(graph: str = "dense", **options: object) -> LabelGCN:
    torch.manual_seed(0)
    arguments = {"node_size": 3, "gcn_size": 4} | options
    arguments |= {
        "dense": {"correlation": CORRELATION},
        "sparse": {"correlation": CORRELATION, "train_graph": False},
        "trained-sparse": {"correlation": CORRELATION, "sparse_graph": True},
        "ml-gcn": LIKE_ML_GCN,
        "sparse-ml-gcn": LIKE_ML_GCN | {"sparse_graph": True},
        "identity": {"correlation": CORRELATION, "adjacency": "identity"},
        "none": {},
    }[graph]
    return LabelGCN(FEATURES, CLASSES, **arguments)


def adjacency(graph: str) -> np.ndarray:
    """Row-normalised P' + I, or ML-GCN's equation (8), normalised symmetrically."""
    if graph in ("none", "identity"):
        return np.eye(CLASSES)
    relations = CORRELATION.dense().double().numpy()
    if "ml-gcn" in graph:
        related = relations > 0
        a = 0.8 * np.eye(CLASSES) + 0.2 * related / related.sum(1, keepdims=True).clip(1)
        root = np.diag(a.sum(1) ** -0.5)
        return root @ a @ root
    relations += np.eye(CLASSES)
    return relations / relations.sum(1, keepdims=True)


def by_hand(head: LabelGCN, a: np.ndarray, x: Tensor) -> np.ndarray:
    nodes, first, second = (
        t.detach().double().numpy() for t in (head.nodes, head.first, head.second)
    )
    inner = a @ nodes @ first
    w = a @ np.where(inner > 0, inner, 0.2 * inner) @ second
    if head.linear is not None:
        w += head.linear.detach().double().numpy()
    bias = 0 if head.bias is None else head.bias.detach().double().numpy()
    return x.double().numpy() @ w.T + bias


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"node_size": 7}, {"bias": True, "linear_share": 0.5}])
def test_head_is_its_definition(graph: str, training: bool, grad: bool, options: dict) -> None:
    head = make(graph, **options).double().train(training)
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    x = torch.randn(7, FEATURES, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        found = head(x)
    expected = by_hand(head, adjacency(graph), x)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("graph", GRAPHS)
def test_gradients_are_those_of_the_definition(graph: str) -> None:
    head, plain = (make(graph, bias=True, linear_share=0.3).double() for _ in range(2))
    x = torch.randn(7, FEATURES, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    direction = torch.randn(7, CLASSES, dtype=torch.float64)
    head(x).backward(direction)
    a = torch.from_numpy(adjacency(graph)).requires_grad_()
    inner = torch.nn.functional.leaky_relu(a @ plain.nodes @ plain.first, 0.2)
    (y @ (a @ inner @ plain.second + plain.linear).T + plain.bias).backward(direction)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(x.grad, y.grad, **tolerance)
    for name, parameter in head.named_parameters():
        if name == "graph.weight":
            expected = a.grad
        elif name == "graph.values":
            expected = a.grad[a != 0]  # row by row
        else:
            expected = plain.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, expected, msg=name, **tolerance)


def test_graph_starts_as_the_normalized_correlation_with_self_loops() -> None:
    for graph in ("dense", "ml-gcn", "none"):
        weight = make(graph).graph.weight
        assert isinstance(weight, torch.nn.Parameter)
        np.testing.assert_allclose(weight.detach().numpy(), adjacency(graph), rtol=1e-6)
    for graph in ("sparse", "trained-sparse", "sparse-ml-gcn"):
        sparse = make(graph).graph
        found = sparse(torch.eye(CLASSES)).detach().numpy()
        np.testing.assert_allclose(found, adjacency(graph), rtol=1e-6)
        assert len(sparse.values) == len(CORRELATION.values) + CLASSES
    # A diagonal of 1, as P has, does not make a self loop of 2.
    relations = CORRELATION.dense().fill_diagonal_(1.0)
    given = LabelGCN(FEATURES, CLASSES, relations, train_graph=False)
    np.testing.assert_allclose(given.graph.weight.numpy(), adjacency("dense"), rtol=1e-6)
    assert relations.diagonal().tolist() == [1] * CLASSES  # the argument is not modified


def test_what_is_trained() -> None:
    def trained(*arguments, **options) -> list[str]:
        return [name for name, _ in make(*arguments, **options).named_parameters()]

    assert trained("dense", bias=True) == ["nodes", "first", "second", "bias", "graph.weight"]
    assert trained("sparse") == ["nodes", "first", "second"]
    assert trained("trained-sparse") == ["nodes", "first", "second", "graph.values"]
    assert trained("identity", linear_share=0.5) == ["nodes", "first", "second", "linear"]
    assert trained("dense", train_nodes=False) == ["first", "second", "graph.weight"]
    names = {name for name, _ in make("sparse", train_nodes=False).named_buffers()}
    assert names == {"nodes", "graph.offsets", "graph.columns", "graph.values", "step_factors"}


def test_node_features_may_be_given() -> None:
    features = np.arange(CLASSES * 2).reshape(CLASSES, 2)
    for given in (features, features.astype(np.float16), torch.from_numpy(features)):
        head = make(node_features=given)
        assert head.nodes.dtype == torch.float32
        assert head.nodes.tolist() == features.tolist()
        assert head.first.shape == (2, 4)
    head.nodes.data.zero_()
    assert features[1, 1] == 3  # a copy


def test_initialization() -> None:
    torch.manual_seed(0)
    head = LabelGCN(400, 50)
    assert head.nodes.shape == (50, 300)
    assert head.nodes.std().item() == pytest.approx(1, rel=0.03)
    for weight, shape in ((head.first, (300, 1024)), (head.second, (1024, 400))):
        assert weight.shape == shape
        bound = 1 / shape[1] ** 0.5
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.mean().item() == pytest.approx(0, abs=0.01 * bound)
    assert head.bias is None


def test_a_linear_part_has_its_share_of_the_variance() -> None:
    torch.manual_seed(0)
    for share in (0.5, 0.2):
        head = LabelGCN(300, 200, node_size=20, gcn_size=40, linear_share=share)
        whole = head.classifiers().detach()
        assert whole.square().mean().item() == pytest.approx(2 / 300, rel=0.05)  # `LogisticHead`'s
        assert head.linear.square().mean().item() == pytest.approx(share * 2 / 300, rel=0.05)
        generated = (whole - head.linear).square().mean().item()
        assert generated == pytest.approx((1 - share) * 2 / 300, rel=1e-4)


@pytest.mark.parametrize("graph", ["dense", "trained-sparse", "ml-gcn", "identity"])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_steps_change_the_logits_as_asked_for(graph: str, scale: float) -> None:
    """The largest change of a logit by a step of one size on one group of weights.

    Relative to linear classifiers it is `step_share`, or less where their rate serves.
    """
    torch.manual_seed(0)
    classes, features, share = 60, 80, 0.1
    random = (torch.rand(classes, classes) < 0.05).fill_diagonal_(False)
    says = LabelCorrelation(
        torch.cat((torch.zeros(1), random.sum(1).cumsum(0))).long(),
        random.nonzero()[:, 1],
        torch.full((int(random.sum()),), 0.6),
    )
    options = {"trained-sparse": {"sparse_graph": True}, "dense": {}}
    head = LabelGCN(
        features, classes, says, scale * torch.randn(classes, 30), gcn_size=50, step_share=share,
        **options.get(graph, {"adjacency": graph}),
    ).double()  # fmt: skip
    factors = head.learning_rate_factors()
    assert factors.keys() == {name for name, _ in head.named_parameters()}
    x = torch.randn(1, features, dtype=torch.float64)
    of_logits = [
        torch.autograd.grad(z, list(head.parameters()), retain_graph=True) for z in head(x)[0]
    ]
    for (name, _), gradients in zip(
        head.named_parameters(), zip(*of_logits, strict=True), strict=True
    ):
        largest = torch.stack([gradient.abs().sum() for gradient in gradients]).mean()
        change = factors[name] * (largest / x.abs().sum()).item()
        assert change < 2 * share, name
        assert change > share / 2 or factors[name] == 1, name


def test_one_rate_for_all() -> None:
    assert make(step_share=None).learning_rate_factors() == {}
    without = LabelGCN(4, 3, node_features=np.zeros((3, 2)))  # nothing that a step could change
    names = ["nodes", "first", "second", "graph.weight"]
    assert without.learning_rate_factors() == dict.fromkeys(names, 1.0)
    assert make(step_share=None).step_factors is None
    frozen = make("sparse", train_nodes=False).learning_rate_factors()
    assert list(frozen) == ["first", "second"]


@pytest.mark.parametrize("graph", ["dense", "sparse"])
def test_training_never_forms_the_classifiers(graph: str) -> None:
    """The operations of W = A f(A X W1) W2 are several times those of the logits."""
    classes, features, batch = 200, 64, 4
    offsets = torch.arange(classes + 1)
    columns = (torch.arange(classes) + 1) % classes
    says = LabelCorrelation(offsets, columns, torch.full((classes,), 0.5))
    head = LabelGCN(features, classes, says, node_size=8, gcn_size=32, train_graph=graph == "dense")
    counter = FlopCounterMode(display=False)
    with counter:
        head(torch.randn(batch, features))
    hidden = classes * 8 * 32 + (classes * classes * 8 if graph == "dense" else 0)
    scores = batch * (features * 32 + 32 * classes)
    last = batch * classes * classes if graph == "dense" else 0
    assert counter.get_total_flops() == 2 * (hidden + scores + last)


@pytest.mark.parametrize("graph", GRAPHS)
def test_classifiers_are_formed_once_and_follow_the_weights(
    graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make(graph, bias=True).eval()
    x = torch.randn(2, FEATURES)
    formed = []
    original = head._hidden
    monkeypatch.setattr(head, "_hidden", lambda: (formed.append(1), original())[1])

    def check(times: int) -> None:
        formed.clear()
        with torch.no_grad():
            found = head(x)
        assert len(formed) == times
        torch.testing.assert_close(found, head(x).detach())  # with gradients: no cache

    check(1)
    check(0)
    for parameter in head.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(head.parameters(), lr=0.1).step()
    check(1)
    head.load_state_dict(make(graph, bias=True).state_dict())
    check(1)
    if graph == "sparse":
        head.graph.values *= 2
    else:
        head.second.data.mul_(2)  # unseen by autograd: needs eval()
        head.eval()
    check(1)
    check(0)
    head.train()(x)
    head.eval()
    check(1)


def test_classifiers_are_not_copied_or_saved() -> None:
    head = make().eval()
    x = torch.randn(2, FEATURES)
    with torch.no_grad():
        expected = head(x)
        assert head._cache is not None
        names = ["nodes", "first", "second", "step_factors", "graph.weight"]
        assert list(head.state_dict()) == names
        for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            assert other._cache is None
            assert torch.equal(other(x), expected)


def test_formed_in_inference_mode_serves_gradients_of_the_input() -> None:
    head = make("sparse").eval().requires_grad_(False)
    x = torch.randn(2, FEATURES)
    with torch.inference_mode():
        head(x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(head(x).sum(), x)
    torch.testing.assert_close(gradient, head.classifiers().sum(0).expand(2, -1))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast(graph: str, training: bool) -> None:
    torch.manual_seed(0)
    head = make(graph, node_size=40, gcn_size=50, bias=True).train(training)
    x = torch.randn(8, FEATURES)
    exact = by_hand(head, adjacency(graph), x)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.bfloat16
    error = np.linalg.norm(logits.detach().double().numpy() - exact) / np.linalg.norm(exact)
    assert error < 0.02
    if training:
        logits.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in head.parameters())
    half = head.bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("graph", ["dense", "sparse", "trained-sparse", "identity"])
def test_compiles_whole_for_any_batch(graph: str) -> None:
    torch._dynamo.reset()
    head, plain = make(graph), make(graph)
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 5):
        x = torch.randn(batch, FEATURES)
        found, expected = compiled(x), plain(x)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
    for (name, a), (_, b) in zip(head.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_empty_batch() -> None:
    for training in (True, False):
        head = make().train(training)
        assert head(torch.zeros(0, FEATURES)).shape == (0, CLASSES)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected at least 1, found 0"),
        ({"node_size": 0}, ValueError, "node_size: expected at least 1, found 0"),
        ({"gcn_size": 0}, ValueError, "gcn_size: expected at least 1, found 0"),
        ({"num_classes": 4}, ValueError, "correlation: expected 4 classes, found 5"),
        ({"adjacency": "row"}, ValueError, "adjacency: expected one of rows, ml-gcn, identity; .*"),
        ({"linear_share": 1.0}, ValueError, r"linear_share: .* to below 1, found 1\.0"),
        ({"step_share": 0.0}, ValueError, r"step_share: .* above 0, found 0\.0"),
        (
            {"correlation": torch.zeros(5, 5), "sparse_graph": True},
            TypeError,
            "correlation: expected a LabelCorrelation for a sparse graph",
        ),
        ({"correlation": None, "train_graph": False}, ValueError, "correlation: expected one, as"),
        ({"correlation": "auto"}, TypeError, "correlation: expected a LabelCorrelation .* str"),
        (
            {"correlation": torch.zeros(5, 4)},
            ValueError,
            r"correlation: expected shape \(5, 5\), found \(5, 4\)",
        ),
        (
            {"correlation": torch.eye(5) - 0.5},
            ValueError,
            r"correlation: expected numbers >= 0, found -0\.5",
        ),
        (
            {"correlation": np.full((5, 5), np.nan)},
            ValueError,
            "correlation: expected finite numbers",
        ),
        (
            {"node_features": np.zeros((4, 3))},
            ValueError,
            r"node_features: expected shape \(5, any\), found \(4, 3\)",
        ),
        ({"node_features": np.zeros((5, 0))}, ValueError, r"node_features: .* found \(5, 0\)"),
        ({"node_features": np.zeros(5)}, ValueError, r"node_features: .* found \(5,\)"),
        ({"node_features": [[1.0]]}, TypeError, "node_features: expected a Tensor or an array"),
        (
            {"node_features": np.full((5, 2), "a")},
            TypeError,
            "node_features: expected numbers, found <U1",
        ),
        (
            {"node_features": np.full((5, 2), np.inf)},
            ValueError,
            "node_features: expected finite numbers",
        ),
    ],
)
def test_bad_arguments(options: dict, error: type[Exception], message: str) -> None:
    arguments = {"num_classes": CLASSES, "correlation": CORRELATION} | options
    with pytest.raises(error, match=message):
        LabelGCN(FEATURES, **arguments)
