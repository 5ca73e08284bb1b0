"""NeXtVLAD and its classifier against the formulas, and in every mode of use."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyseg import _ext, _int8
from pyseg._int8 import has_fast_int8, int8_linear, int8_products
from pyseg.nn import BatchNorm, NeXtVLAD, NeXtVLADClassifier, linear, nextvlad, normalize
from pyseg.nn.product_order import Order
from pyseg.ops import frame_pool_reference
from pyseg.ops import frames as frame_ops

SIZES = (12, 6)
ORDERS = get_args(Order)


def scramble(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and buffer distinct values, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            value = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                value = value.abs() + 0.5
            elif tensor.ndim == 2:
                value /= math.sqrt(tensor.shape[1])
            tensor.copy_(value)
    return module


def make_layer(**options: object) -> NeXtVLAD:
    arguments = {"feature_size": 12, "clusters": 5, "groups": 4} | options
    return scramble(NeXtVLAD(**arguments))  # type: ignore[return-value]


def make_model(num_classes: int = 7, **options: object) -> NeXtVLADClassifier:
    arguments = {
        "feature_sizes": SIZES,
        "clusters": 6,
        "groups": 4,
        "hidden_size": 16,
        "reduction": 4,
        "dropout": 0.0,
    } | options
    return scramble(NeXtVLADClassifier(num_classes, **arguments))  # type: ignore[return-value]


def make_frames(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (batch, length, sum(SIZES)), generator=generator, dtype=torch.uint8
    )


def batch_norm(x: np.ndarray, norm: BatchNorm, training: bool) -> np.ndarray:
    array = {key: value.double().numpy() for key, value in norm.state_dict().items()}
    mean = x.mean(0) if training else array["running_mean"]
    var = x.var(0) if training else array["running_var"]
    return (x - mean) / np.sqrt(var + 1e-3) * array["weight"] + array["bias"]


def layer_by_loops(layer: NeXtVLAD, frames: np.ndarray, valid: list[int]) -> np.ndarray:
    """The layer's definition as loops over videos, frames, groups and clusters, in float64."""
    w = {key: value.double().numpy() for key, value in layer.state_dict().items()}
    batch, length, _ = frames.shape
    groups, clusters = layer.groups, layer.clusters
    size = layer.expansion * layer.feature_size // groups
    h = frames @ w["expand.weight"].T + w["expand.bias"]
    attention = 1 / (1 + np.exp(-(h @ w["attention.weight"].T + w["attention.bias"])))
    scores = (h @ w["assign.weight"].T).reshape(batch * length, -1)
    scores = batch_norm(scores, layer.assign_norm, layer.training).reshape(batch, length, -1)
    out = np.zeros((batch, size * clusters))
    for b in range(batch):
        vlad = np.zeros((size, clusters))
        for t in range(valid[b]):
            for g in range(groups):
                e = np.exp(scores[b, t, g * clusters : (g + 1) * clusters])
                for k in range(clusters):
                    x = h[b, t, g * size : (g + 1) * size]
                    vlad[:, k] += attention[b, t, g] * e[k] / e.sum() * (x - w["centers"][:, k])
        vlad /= np.sqrt(np.maximum((vlad**2).sum(0), 1e-12))
        for f in range(size):
            for k in range(clusters):
                out[b, f * clusters + k] = vlad[f, k]
    return batch_norm(out, layer.norm, layer.training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"groups": 1}, {"expansion": 1, "groups": 3}, {"clusters": 1}]
)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [1, 5, 9])
def test_layer_is_its_definition(
    monkeypatch: pytest.MonkeyPatch, training: bool, options: dict, length: int, order: str
) -> None:
    layer = make_layer(order=order, **options).double().train(training)
    # Two videos are pooled at a time, then the third.
    pooled = 2 * 12 * layer.groups * layer.clusters
    monkeypatch.setattr(frame_ops, "_POOLED_BYTES", {"cpu": 8 * pooled})
    frames = np.random.default_rng(1).standard_normal((3, length, 12))
    valid = [length, (length + 1) // 2, 0]
    expected = layer_by_loops(layer, frames, valid)
    mask = torch.arange(length) < torch.tensor(valid)[:, None]
    with torch.set_grad_enabled(training):  # eval mode uses the folded weights without gradients
        found = layer(torch.from_numpy(frames), mask)
    torch.testing.assert_close(found.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def values_and_gradients(layer: NeXtVLAD, frames: torch.Tensor, mask: torch.Tensor) -> dict:
    leaf = frames.clone().requires_grad_(frames.is_floating_point())
    output = layer(leaf, mask)
    (output * torch.linspace(-1, 1, output.shape[1], dtype=output.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    return (
        {"output": output.detach(), "frames": leaf.grad} | gradients | dict(layer.named_buffers())
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded_statistics", [False, True])
@pytest.mark.parametrize("order", [*ORDERS, None])
def test_orders_agree(order, padded_statistics: bool, training: bool, dtype: torch.dtype) -> None:
    """Values, gradients of parameters and frames, moving statistics."""
    frames = make_frames(3, 7)[..., :12]
    mask = torch.arange(7) < torch.tensor([[7], [3], [0]])
    x = frames.double() * (4 / 255) + (4 / 512 - 2)
    x = torch.where(mask.unsqueeze(-1), x, 0.0)
    results = []
    for each, given in ((order, frames if dtype == torch.uint8 else x), ("direct", x)):
        layer = make_layer(order=each, padded_statistics=padded_statistics, groups=3)
        results.append(values_and_gradients(layer.double().train(training), given, mask))
    if dtype == torch.uint8:
        results[1]["frames"] = None
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_operations_are_those_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)  # PyTorch counts its own products only
    monkeypatch.setattr(nextvlad, "frame_pool", frame_pool_reference)
    for order in ORDERS:
        layer = NeXtVLAD(96, clusters=16, groups=4, order=order)
        frames = torch.randn(3, 20, 96)
        counter = FlopCounterMode(display=False)
        for backward in (False, True):
            with counter, torch.set_grad_enabled(backward):
                output = layer(frames)
                if backward:
                    output.sum().backward()
            expected = layer.operations(3, 20, backward=backward)[order]
            # `operations` omits the products of the attention and of the biases.
            assert expected < counter.get_total_flops() < 1.15 * expected, (order, backward)
        layer.eval()
        with torch.no_grad():
            layer(frames)
            with counter:
                layer(frames)
        expected = layer.operations(3, 20, formed=True)[order]
        assert expected < counter.get_total_flops() < 1.15 * expected, order


def test_the_cheapest_order_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = NeXtVLAD(96, clusters=16, groups=4)
    taken = []
    for name in ("assign", "_pool"):
        target = layer.assign if name == "assign" else layer
        method = "forward" if name == "assign" else name
        original = getattr(target, method)
        monkeypatch.setattr(
            target, method, lambda *a, f=original, n=name: (taken.append(n), f(*a))[1]
        )

    def order(batch: int, length: int) -> str:
        taken.clear()
        layer(torch.randn(batch, length, 96))
        return {(): "folded", ("assign",): "direct", ("_pool",): "reassociated"}[tuple(taken)]

    for training, grad in itertools.product((True, False), (True, False)):
        layer.train(training)
        orders = set()
        for shape in ((1, 1), (8, 5), (4, 40), (20, 300)):
            with torch.set_grad_enabled(grad):
                orders.add(found := order(*shape))
            counts = layer.operations(*shape, backward=grad, formed=not training and not grad)
            assert counts[found] == min(counts.values())
        assert len(orders) > 1


def test_folded_weights_are_formed_once_and_follow_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = make_layer(order="folded").eval()
    frames = torch.randn(2, 6, 12)
    formed = []
    original = layer._fold
    monkeypatch.setattr(layer, "_fold", lambda: (formed.append(1), original())[1])

    def check(times: int) -> None:
        formed.clear()
        with torch.no_grad():
            found = layer(frames)
        assert len(formed) == times
        torch.testing.assert_close(found, layer(frames).detach())  # with gradients: no cache

    check(1)
    check(0)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    check(1)
    layer.load_state_dict(make_layer().state_dict())
    check(1)
    layer.assign_norm.running_mean += 1
    check(1)
    layer.train()(frames)
    layer.eval()
    check(1)
    layer.assign.weight.data.mul_(2)  # invisible, as documented, until eval()
    layer.eval()
    check(1)
    layer.double()
    frames = frames.double()
    check(1)


@pytest.mark.skipif(not has_fast_int8(), reason="the processor has no VNNI and no AMX")
@pytest.mark.parametrize("bytes_", [True, False])
@torch.no_grad()
def test_integers_are_multiplied_layer_by_layer_but_for_long_videos(
    monkeypatch: pytest.MonkeyPatch, bytes_: bool
) -> None:
    monkeypatch.setattr(_int8, "_FEWEST_WEIGHTS", 0)
    calls = []
    monkeypatch.setattr(
        linear, "int8_linear", lambda *args: calls.append(args[1]) or int8_linear(*args)
    )
    layer = scramble(NeXtVLAD(96, clusters=8, groups=4)).eval()
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    frames = torch.randint(0, 256, (3, 6, 96), dtype=torch.uint8)
    if not bytes_:
        frames = frame_ops.dequantize(frames, mask, torch.float32)
    exact = layer(frames, mask)
    with int8_products(True):
        rounded = layer(frames, mask)
        assert len(calls) == 3  # expansion, attention, assignment
        error = (rounded - exact).norm(dim=1) / exact.norm(dim=1)
        assert (error[:2] > 1e-4).all()
        assert (error < 0.05).all()
        alone = layer(frames[1:2, :2])  # its own frames, no others
        torch.testing.assert_close(rounded[1:2], alone, rtol=1e-4, atol=1e-4)
        calls.clear()
        layer.order = "folded"
        torch.testing.assert_close(layer(frames, mask), exact, rtol=1e-4, atol=1e-4)
        monkeypatch.setattr(layer, "cheapest_order", lambda frames: "reassociated")
        layer.order = None
        torch.testing.assert_close(layer(frames, mask), exact, rtol=1e-4, atol=1e-4)
        assert not calls


def test_folded_weights_are_not_copied_or_saved() -> None:
    layer = make_layer(order="folded").eval()
    frames = torch.randn(2, 6, 12)
    with torch.no_grad():
        expected = layer(frames)
        assert layer._cache is not None
        assert list(layer.state_dict()) == list(make_layer().state_dict())
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other._cache is None
            assert torch.equal(other(frames), expected)


def test_folded_weights_of_inference_mode_serve_gradients_of_frames() -> None:
    layer = make_layer(order="folded").eval().requires_grad_(False)
    frames = torch.randn(2, 6, 12)
    with torch.inference_mode():
        layer(frames)
    frames.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(frames).sum(), frames)
    (expected,) = torch.autograd.grad(make_layer(order="direct").eval()(frames).sum(), frames)
    torch.testing.assert_close(gradient, expected)


def test_layer_has_the_reference_parameters() -> None:
    """No bias on the assignment; centres (F, K); K columns for each of the G groups."""
    layer = NeXtVLAD(feature_size=12, clusters=5, groups=4)
    assert layer.out_features == 30
    assert {key: tuple(value.shape) for key, value in layer.named_parameters()} == {
        "expand.weight": (24, 12),
        "expand.bias": (24,),
        "attention.weight": (4, 24),
        "attention.bias": (4,),
        "assign.weight": (20, 24),
        "assign_norm.weight": (20,),
        "assign_norm.bias": (20,),
        "centers": (6, 5),
        "norm.weight": (30,),
        "norm.bias": (30,),
    }
    assert not layer.assign_norm.unbiased
    assert not layer.norm.unbiased


def test_columns_are_normalized_over_features() -> None:
    """L2 over the F features of a cluster, which lie K apart in the output."""
    layer = make_layer()
    layer.norm = nn.Identity()
    columns = layer(torch.randn(2, 6, 12)).reshape(2, 6, 5)
    torch.testing.assert_close(columns.square().sum(1), torch.ones(2, 5))


def test_initialization() -> None:
    torch.manual_seed(0)
    layer = NeXtVLAD(feature_size=64, clusters=32, groups=4)
    for weight, fan_in in (
        (layer.expand.weight, 64),
        (layer.attention.weight, 128),
        (layer.assign.weight, 128),
        (layer.centers, 32),
    ):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
        assert weight.abs().max() <= 2 * math.sqrt(1.3 * 2 / fan_in)
    assert (layer.expand.bias == 0).all()
    assert (layer.attention.bias == 0).all()


def test_statistics_include_padded_rows_by_default() -> None:
    """Padding is a constant row: the expansion's bias through the assignment."""
    frames = torch.randn(2, 4, 12)
    mask = torch.tensor([[True] * 4, [True] + [False] * 3])
    frames[~mask] = 0
    layers = {on: make_layer(padded_statistics=on, batch_norm_momentum=1.0) for on in (True, False)}
    outputs = {on: layer(frames, mask) for on, layer in layers.items()}
    rows = layers[True].assign(layers[True].expand(frames))
    torch.testing.assert_close(layers[True].assign_norm.running_mean, rows.mean((0, 1)).detach())
    torch.testing.assert_close(layers[False].assign_norm.running_mean, rows[mask].mean(0).detach())
    assert not torch.allclose(outputs[True], outputs[False], atol=1e-3)


def test_layer_checks_its_arguments() -> None:
    layer = make_layer()
    with pytest.raises(ValueError, match=r"frames: expected .* 12\), found \(2, 3, 11\)"):
        layer(torch.zeros(2, 3, 11))
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 3\).*, found \(2, 4\)"):
        layer(torch.zeros(2, 3, 12), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"groups: expected a divisor .* = 24, such as 4, found 5"):
        NeXtVLAD(12, clusters=4, groups=5)
    with pytest.raises(TypeError, match=r"frames: expected uint8 or floating, found torch\.int64"):
        layer(torch.zeros(2, 3, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"order: expected one of direct, folded, .*'quick'"):
        NeXtVLAD(12, clusters=4, groups=4, order="quick")
    for name in ("feature_size", "clusters", "groups", "expansion"):
        sizes = {"feature_size": 12, "clusters": 4, "groups": 4, "expansion": 2, name: 0}
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, found 0"):
            NeXtVLAD(**sizes)


def test_classifier_is_its_definition() -> None:
    """Normalise, two branches, concatenate, hidden without bias or ReLU, gate, head."""
    model = make_model().double().eval()
    frames, valid = make_frames(3, 5), [5, 3, 1]
    x = frames.double().numpy() * (4 / 255) + (4 / 512 - 2)
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    video, audio = model.branches
    aggregate = np.concatenate(
        (layer_by_loops(video, x[..., :12], valid), layer_by_loops(audio, x[..., 12:], valid)), 1
    )
    hidden = batch_norm(aggregate @ w["hidden.weight"].T, model.hidden_norm, False)
    inner = batch_norm(hidden @ w["gate.squeeze.weight"].T, model.gate.norm, False)
    gate = 1 / (1 + np.exp(-np.maximum(inner, 0) @ w["gate.excite.weight"].T))
    logits = hidden * gate @ w["head.linear.weight"].T + w["head.linear.bias"]
    found = model(frames, torch.tensor(valid)).detach().numpy()
    np.testing.assert_allclose(found, logits, rtol=1e-9, atol=1e-9)


def test_classifier_has_the_reference_parameters() -> None:
    model = make_model()
    parameters = dict(model.named_parameters())
    video, audio = model.branches
    assert (video.clusters, video.groups, audio.clusters, audio.groups) == (6, 4, 3, 2)
    assert "hidden.bias" not in parameters
    assert "gate.squeeze.bias" not in parameters
    assert parameters["hidden.weight"].shape == (16, video.out_features + audio.out_features)
    norms = {name: m.unbiased for name, m in model.named_modules() if isinstance(m, BatchNorm)}
    assert [name for name, unbiased in norms.items() if unbiased] == ["gate.norm"]


@pytest.mark.parametrize("training", [False, True])
def test_bytes_and_dequantized_frames_give_the_same(training: bool) -> None:
    frames, num_frames = make_frames(4, 6), torch.tensor([6, 4, 1, 2])
    by_bytes = make_model().train(training)(frames, num_frames)
    x = frames.float() * (4 / 255) + (4 / 512 - 2)
    x[torch.arange(6) >= num_frames[:, None]] = 0
    torch.testing.assert_close(make_model().train(training)(x, num_frames), by_bytes)


@pytest.mark.parametrize("normalization", ["dequantize", "l2", "unwhiten", "raw"])
def test_padding_never_changes_a_prediction(normalization: str) -> None:
    """Neither the content nor the number of padded frames matters."""
    eigenvalues = torch.linspace(3, 0.1, 12) if normalization == "unwhiten" else None
    model = make_model(normalization=normalization, eigenvalues=eigenvalues).eval()
    model.normalization.load_state_dict({} if eigenvalues is None else {"eigenvalues": eigenvalues})
    num_frames = torch.tensor([4, 2, 6])
    frames = make_frames(3, 6)
    expected = model(frames, num_frames)
    padded = torch.arange(6) >= num_frames[:, None]

    changed = frames.clone()
    changed[padded] = 255 - changed[padded]
    assert torch.equal(model(changed, num_frames), expected)

    floats = frames.float() if normalization == "raw" else frames * (4 / 255) + (4 / 512 - 2)
    expected = model(floats, num_frames)
    for garbage in (1e30, float("nan"), float("inf")):
        changed = floats.clone()
        changed[padded] = garbage
        assert torch.equal(model(changed, num_frames), expected)

    longer = torch.nn.functional.pad(frames, (0, 0, 0, 301 - 6), value=77)
    torch.testing.assert_close(model(longer, num_frames), model(frames, num_frames))
    for index, length in enumerate(num_frames.tolist()):
        alone = frames[index : index + 1, :length]
        logits = model(alone, torch.tensor([length]))
        torch.testing.assert_close(logits[0], model(frames, num_frames)[index])
        assert torch.equal(model(alone), logits)


@pytest.mark.parametrize("padded_statistics", [False, True])
def test_garbage_never_changes_training_either(padded_statistics: bool) -> None:
    models = [make_model(padded_statistics=padded_statistics) for _ in range(2)]
    num_frames = torch.tensor([4, 2])
    frames = make_frames(2, 4)
    changed = frames.clone()
    changed[1, 2:] = 3
    for model, x in zip(models, (frames, changed), strict=True):
        model(x, num_frames).sum().backward()
    for (name, a), (_, b) in zip(*(m.named_parameters() for m in models), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), (_, b) in zip(*(m.named_buffers() for m in models), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded_statistics", [False, True])
@pytest.mark.parametrize("num_frames", [[0, 3], [0, 0]])
def test_a_video_without_frames_is_finite(
    training: bool, padded_statistics: bool, num_frames: list[int]
) -> None:
    """Nothing is divided by the number of frames.

    On a GPU counts are not checked, so 0 must be harmless where it is no error.
    """
    model = make_model(padded_statistics=padded_statistics).train(training)
    mask = torch.arange(3) < torch.tensor(num_frames).unsqueeze(1)
    logits = model.classify(make_frames(2, 3), mask)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())
    if not training:  # a constant, independent of the batch
        alone = model.classify(make_frames(1, 1), torch.tensor([[False]]))
        torch.testing.assert_close(logits[0], alone[0])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_empty_batches(shape: tuple[int, int]) -> None:
    model = make_model().eval()
    logits = model(make_frames(*shape))
    assert logits.shape == (shape[0], 7)
    assert logits.isfinite().all()


def test_one_video_can_be_trained_on() -> None:
    """The last batch of an epoch may hold one video."""
    model = make_model()
    model(make_frames(1, 1), torch.tensor([1])).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


def test_dropout_of_zero_is_zero() -> None:
    """In the reference a 0 falls back to the flag's 0.5."""
    frames, num_frames = make_frames(4, 3), torch.tensor([3, 2, 1, 3])
    without = [make_model(dropout=0)(frames, num_frames) for _ in range(2)]
    assert torch.equal(*without)
    with_dropout = [make_model(dropout=0.5)(frames, num_frames) for _ in range(2)]
    assert not torch.equal(*with_dropout)
    assert make_model(dropout=0).dropout.p == 0
    assert NeXtVLADClassifier(2, feature_sizes=(4,), clusters=2, groups=1).dropout.p == 0.5


def test_odd_clusters_and_groups_are_halved_downwards() -> None:
    model = make_model(clusters=7, groups=3)
    audio = model.branches[1]
    assert (audio.clusters, audio.groups) == (3, 1)
    assert model(make_frames(2, 3), torch.tensor([3, 1])).isfinite().all()
    for name in ("clusters", "groups"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 2, as .*; found 1"):
            make_model(**{name: 1})
    single = make_model(feature_sizes=(18,), clusters=1, groups=1)
    assert len(single.branches) == 1
    with pytest.raises(ValueError, match=r"groups: expected a divisor .* = 6, such as 3, found 4"):
        make_model(feature_sizes=(12, 3), groups=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_sizes": ()}, r"feature_sizes: expected positive widths, found \(\)"),
        ({"feature_sizes": (4, 0)}, r"feature_sizes: expected positive widths, found \(4, 0\)"),
        ({"hidden_size": 0}, "hidden_size: expected at least 1, found 0"),
        ({"reduction": 17}, r"reduction: expected 1\.\.16, found 17"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), found 1.0"),
        ({"num_classes": 0}, "num_classes: expected at least 1, found 0"),
        ({"normalization": "none"}, "normalization: expected one of .*; found 'none'"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_bad_input() -> None:
    model = make_model().eval()
    with pytest.raises(ValueError, match=r"frames: expected .* 18\).*12 \+ 6; found \(1, 2, 17\)"):
        model(torch.zeros(1, 2, 17), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"frames: expected .* 18\), .*; found \(2, 18\)"):
        model(torch.zeros(2, 18), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"num_frames: expected values in 1\.\.2 .* found 3"):
        model(torch.zeros(1, 2, 18), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"num_frames: expected values in 1\.\.2 .* found 0"):
        model(torch.zeros(1, 2, 18), torch.tensor([0]))


@pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason=f"no compiled library: {_ext.CPU_REASON}")
@pytest.mark.parametrize("training", [False, True])
def test_same_with_and_without_the_compiled_library(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, num_frames = make_frames(4, 6), torch.tensor([6, 4, 1, 2])
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(_ext, "HAS_CPU_OPS", compiled)
        model = make_model().double().train(training)
        logits = model(frames, num_frames)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("training", "padded_statistics", "order"),
    [
        (True, True, "direct"),
        (True, False, "folded"),
        (True, True, "reassociated"),
        (False, True, None),
    ],
)
def test_compiles_whole_for_any_batch_and_length(
    training: bool, padded_statistics: bool, order: str | None
) -> None:
    """Without a fixed order, a layer is recompiled where another order becomes the cheapest.

    AOTAutograd is tested with the presets and the operators.
    """
    torch._dynamo.reset()
    options = {"feature_sizes": (18,), "padded_statistics": padded_statistics}
    model, plain = (make_model(**options).train(training) for _ in range(2))
    for each in (model, plain):
        each.branches[0].order = order
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for index, (batch, length) in enumerate(((4, 6), (3, 5))):
        frames = make_frames(batch, length)
        num_frames = torch.arange(batch) % length + 1
        with (
            torch.set_grad_enabled(training),
            torch._dynamo.config.patch(error_on_recompile=index > 0),
        ):
            found, expected = compiled(frames, num_frames), plain(frames, num_frames)
        torch.testing.assert_close(found, expected)
        if training:
            found.square().sum().backward()
            expected.square().sum().backward()
    for (name, a), (_, b) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        if training:
            torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), (_, b) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("floats", [False, True])
def test_exports_with_any_batch_and_length(floats: bool) -> None:
    def make(batch: int, length: int) -> torch.Tensor:
        return make_frames(batch, length) / 64 - 2 if floats else make_frames(batch, length)

    model = make_model().eval()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    program = torch.export.export(
        model,
        (make(3, 6), torch.tensor([6, 4, 2])),
        dynamic_shapes=({0: batch, 1: length}, {0: batch}),
    )
    for shape in ((3, 6), (2, 9), (5, 4)):
        frames, num_frames = make(*shape), torch.arange(shape[0]) % shape[1] + 1
        torch.testing.assert_close(program.module()(frames, num_frames), model(frames, num_frames))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_a_gpu_dequantises_once_a_step_and_rounds_once(
    order: Order, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's path on the CPU, in autocast: exactly what rounded float32 frames give.

    Bytes around the middle stand for small values, of which arithmetic in bfloat16 keeps no digit.
    """
    frames = 120 + make_frames(6, 9)[..., :12] % 16
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 9, 0, 7]).unsqueeze(1)
    x = (frames.float() * (4 / 255) + (4 / 512 - 2)).where(mask.unsqueeze(-1), 0.0)
    calls = []
    original = normalize.dequantize
    monkeypatch.setattr(normalize, "_SHARING", ("cpu",))
    monkeypatch.setattr(normalize, "dequantize", lambda *a: (calls.append(1), original(*a))[1])
    monkeypatch.setattr(frame_ops, "dequantize", None)
    results = []
    for given in (frames, x.bfloat16()):
        layer = make_layer(order=order).train(training)
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(given, mask)
        (output * torch.linspace(-1, 1, output.shape[1])).sum().backward()
        results.append([output.detach(), *(p.grad for p in layer.parameters())])
    assert calls == [1]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("sharing", [(), ("cpu",)], ids=["tile", "gpu"])
def test_a_classifier_dequantizes_all_features_once(
    sharing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    original = normalize.dequantize
    monkeypatch.setattr(normalize, "_SHARING", sharing)
    monkeypatch.setattr(
        normalize, "dequantize", lambda *a: (shapes.append(a[0].shape), original(*a))[1]
    )
    frames = make_frames(3, 4)
    make_model()(frames, torch.tensor([4, 1, 2]))
    assert shapes == [frames.shape]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("length", [5, 300])
def test_bfloat16_autocast(training: bool, length: int) -> None:
    """Sums over all frames stay accurate; parameters and statistics stay in float32."""
    frames = make_frames(8, length)
    num_frames = torch.tensor([length, 1, 2, 3, 4, length, 5, length])
    exact = make_model().double().train(training)(frames, num_frames)
    model = make_model().train(training)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(frames, num_frames)
    assert logits.isfinite().all()
    error = (logits.double() - exact).norm() / exact.norm()
    assert error < 0.05
    logits.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("training", [False, True])
def test_same_on_a_gpu(training: bool) -> None:
    frames, num_frames = make_frames(4, 6), torch.tensor([6, 4, 1, 2])
    expected, model = make_model().train(training), make_model().train(training).cuda()
    logits = model(frames.cuda(), num_frames.cuda())
    torch.testing.assert_close(logits.cpu(), expected(frames, num_frames), rtol=1e-3, atol=1e-4)
    for (name, a), (_, b) in zip(model.named_buffers(), expected.named_buffers(), strict=True):
        torch.testing.assert_close(a.cpu(), b, msg=name)


def test_state_dict_round_trip_is_exact() -> None:
    frames, num_frames = make_frames(4, 6), torch.tensor([6, 4, 1, 2])
    model = make_model()
    model(frames, num_frames)  # moves the statistics
    other = make_model()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(frames, num_frames), model.eval()(frames, num_frames))


def test_overfits_eight_videos() -> None:
    torch.manual_seed(0)
    model = make_model(num_classes=4, batch_norm_momentum=0.2)
    frames, num_frames = make_frames(8, 5), torch.tensor([5, 4, 3, 2, 1, 5, 5, 5])
    labels = torch.eye(4).repeat(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(model(frames, num_frames), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    assert torch.equal(model.eval()(frames, num_frames) > 0, labels > 0)
