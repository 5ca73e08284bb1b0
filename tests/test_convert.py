"""load_nextvlad_tf and load_mix_nextvlad_tf against numbers of the reference code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from pyseg import convert, models
from pyseg.nn.nextvlad import Order


def reference_shapes(clusters: int, hidden: int, reduction: int, groups: int, classes: int) -> dict:
    """Names and shapes of the reference model's variables, for YouTube-8M features."""
    names = "video_VLAD", "audio_VLAD"
    shapes = branch_shapes(clusters, hidden, reduction, groups, classes, names)
    return {f"tower/{name}": shape for name, shape in shapes.items()}


def mixture_shapes(
    clusters: int, hidden: int, reduction: int, groups: int, classes: int, count: int
) -> dict:
    """The same for the reference's mixture."""
    names = "video_vlad", "audio_vlad"
    branch = branch_shapes(clusters, hidden, reduction, groups, classes, names)
    shapes = {
        f"tower/branch_{index}/{name}": shape
        for index in range(count)
        for name, shape in branch.items()
    }
    shapes |= {"tower/mix_weights/weights": (1152, count), "tower/mix_weights/biases": (count,)}
    return shapes | batch_norm_shapes("tower/mix_weights_bn", 1152)


def batch_norm_shapes(scope: str, size: int) -> dict:
    names = ("beta", "gamma", "moving_mean", "moving_variance")
    return {f"{scope}/{name}": (size,) for name in names}


def branch_shapes(
    clusters: int, hidden: int, reduction: int, groups: int, classes: int, features: tuple
) -> dict:
    shapes: dict[str, tuple[int, ...]] = {}
    aggregate = 0
    for scope, size, k, g in (
        (features[0], 1024, clusters, groups),
        (features[1], 128, clusters // 2, groups // 2),
    ):
        expanded, group_size = 2 * size, 2 * size // g
        shapes[f"{scope}/fully_connected/weights"] = (size, expanded)
        shapes[f"{scope}/fully_connected/biases"] = (expanded,)
        shapes[f"{scope}/fully_connected_1/weights"] = (expanded, g)
        shapes[f"{scope}/fully_connected_1/biases"] = (g,)
        shapes[f"{scope}/cluster_weights"] = (expanded, g * k)
        shapes[f"{scope}/cluster_weights2"] = (1, group_size, k)
        shapes |= batch_norm_shapes(f"{scope}/cluster_bn", g * k)
        shapes |= batch_norm_shapes(f"{scope}/vlad_bn", group_size * k)
        aggregate += group_size * k
    shapes["hidden1_weights"] = (aggregate, hidden)
    shapes["gating_weights_1"] = (hidden, hidden // reduction)
    shapes["gating_weights_2"] = (hidden // reduction, hidden)
    shapes["fully_connected/weights"] = (hidden, classes)
    shapes["fully_connected/biases"] = (classes,)
    shapes |= batch_norm_shapes("hidden1_bn", hidden)
    return shapes | batch_norm_shapes("gating_bn", hidden // reduction)


def draw_variables(shapes: dict, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    variables = {}
    for name in in_order(shapes):
        shape, last = shapes[name], name.rsplit("/", 1)[-1]
        if last in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif last in ("beta", "moving_mean", "biases"):
            value = rng.standard_normal(shape) * 0.2
        else:
            fan_in = shape[1] if last == "cluster_weights2" else np.prod(shape[:-1])
            value = rng.standard_normal(shape) / np.sqrt(fan_in)
        variables[name] = value.astype(np.float32)
    return variables


def in_order(names: Any) -> list[str]:
    """TensorFlow's names end in ":0", so cluster_weights2 comes before cluster_weights."""
    return sorted(names, key=lambda name: name + ":0")


@dataclass
class Golden:
    """Numbers of the reference, with their weights and inputs."""

    results: dict[str, np.ndarray]
    meta: dict[str, Any]
    variables: dict[str, np.ndarray]
    quantized: np.ndarray  # (B, T, 1152) uint8
    frames: np.ndarray  # (B, T, 1152) float32, 0 past num_frames
    num_frames: np.ndarray
    labels: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Golden:
        with np.load(path, allow_pickle=False) as file:
            results = dict(file)
        meta = json.loads(str(results["meta"]))
        batch, length = meta["B"], meta["T"]
        rng = np.random.default_rng(meta["seed"] + 1)
        quantized = rng.integers(0, 256, (batch, length, 1152))
        frames = (quantized * np.float32(4 / 255) + np.float32(4 / 512 - 2)).astype(np.float32)
        num_frames = rng.integers(max(1, length // 3), length + 1, batch)
        frames[np.arange(length) >= num_frames[:, None]] = 0
        labels = rng.random((batch, meta["C"])) < 0.2
        variables = draw_variables(meta["shapes"], meta["seed"])
        return cls(results, meta, variables, quantized.astype(np.uint8), frames, num_frames, labels)


def read_golden(shared: Path, name: str) -> Golden:
    path = shared / "goldens" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no reference numbers at {path}")
    return Golden.read(path)


@pytest.fixture(params=["nextvlad_eval", "nextvlad_train"])
def golden(request: pytest.FixtureRequest, shared: Path) -> Golden:
    return read_golden(shared, request.param)


def check_predictions_and_gradients(
    golden: Golden, model: nn.Module, keys: dict[str, str], logits: torch.Tensor
) -> None:
    """Compares the results in both kinds of files; `keys` maps reference names to the model's."""
    results = golden.results
    predictions = torch.sigmoid(logits)
    np.testing.assert_allclose(
        predictions.detach().numpy(), results["out/predictions"], rtol=0, atol=1e-6
    )
    # The reference's constant inside the logarithms is 1e-8.
    right = torch.where(torch.from_numpy(golden.labels), predictions, 1 - predictions)
    loss = -torch.log(right + 1e-8).sum(1).mean()
    assert loss.item() == pytest.approx(float(results["out/cross_entropy"]), rel=1e-6)
    loss.backward()

    parameters = dict(model.named_parameters())
    rng = np.random.default_rng(golden.meta["seed"] + 2)
    trainable = [name for name in in_order(golden.meta["shapes"]) if "moving_" not in name]
    assert len(trainable) == len(parameters)
    for name in trainable:
        shape = golden.meta["shapes"][name]
        direction = rng.standard_normal(shape)
        gradient = parameters[keys[name]].grad.double().numpy()
        if gradient.ndim == 2 and keys[name].endswith(".weight"):
            gradient = gradient.T
        gradient = gradient.reshape(shape)
        norm, dot = np.linalg.norm(gradient), (gradient * direction).sum()
        # A shift before a batch normalisation has no gradient but rounding errors.
        noise = 1e-6 if golden.meta["train"] and name.endswith("vlad_bn/beta") else 0.0
        expected = float(results[f"gradnorm/{name}"])
        assert norm == pytest.approx(expected, rel=1e-4, abs=noise), name
        # A dot product may cancel: its error is relative to the norm.
        expected_dot = float(results[f"graddot/{name}"])
        assert dot == pytest.approx(expected_dot, abs=1e-4 * expected + noise * 100), name


@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("quantized", [False, True])
def test_reference_numbers(golden: Golden, quantized: bool, order: Order) -> None:
    model = convert.load_nextvlad_tf(golden.variables, golden.meta["C"], dropout=0.0)
    model.train(golden.meta["train"])
    for branch in model.branches:
        branch.order = order
    frames = torch.from_numpy(golden.quantized if quantized else golden.frames)
    logits = model(frames, torch.from_numpy(golden.num_frames))
    results = golden.results
    if not golden.meta["train"]:
        with torch.no_grad():  # with the folded weights of eval mode
            found = model(frames, torch.from_numpy(golden.num_frames))
        np.testing.assert_allclose(found.numpy(), results["out/logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits.detach().numpy(), results["out/logits"], rtol=0, atol=1e-5)
    keys = {name: key for key, name in convert._variable_names().items()}
    check_predictions_and_gradients(golden, model, keys, logits)

    buffers = dict(model.named_buffers())
    after = {name[6:]: value for name, value in results.items() if name.startswith("after/")}
    assert len(after) == (12 if golden.meta["train"] else 0)
    for name, value in after.items():
        found = buffers[keys[name]].numpy()
        np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-7, err_msg=name)
        assert not np.allclose(found, golden.variables[name], rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("quantized", [False, True])
def test_reference_numbers_of_the_mixture(shared: Path, quantized: bool) -> None:
    golden = read_golden(shared, "mix_nextvlad_eval")
    model = convert.load_mix_nextvlad_tf(golden.variables, golden.meta["C"], dropout=0.0).eval()
    frames = torch.from_numpy(golden.quantized if quantized else golden.frames)
    logits = model(frames, torch.from_numpy(golden.num_frames))
    keys = {name: key for key, name in convert._mixture_names(3).items()}
    check_predictions_and_gradients(golden, model, keys, logits)


def test_reference_names_of_the_mixture(shared: Path) -> None:
    meta = read_golden(shared, "mix_nextvlad_eval").meta
    sizes = (meta[key] for key in ("K", "H", "R", "G", "C", "mix_number"))
    shapes = mixture_shapes(*sizes)
    assert {name: list(shape) for name, shape in shapes.items()} == meta["shapes"]


def test_reference_names(golden: Golden) -> None:
    meta = golden.meta
    shapes = reference_shapes(meta["K"], meta["H"], meta["R"], meta["G"], meta["C"])
    assert {name: list(shape) for name, shape in shapes.items()} == meta["shapes"]


@pytest.fixture(scope="module")
def variables() -> dict[str, np.ndarray]:
    return draw_variables(reference_shapes(4, 16, 4, 4, 7), seed=0)


def test_geometry_is_read_from_the_shapes(variables: dict[str, np.ndarray]) -> None:
    model = convert.load_nextvlad_tf(variables, 7)
    assert model.training
    assert model.feature_sizes == (1024, 128)
    assert model.num_classes == 7
    video, audio = model.branches
    assert (video.clusters, video.groups, video.expansion) == (4, 4, 2)
    assert (audio.clusters, audio.groups, audio.expansion) == (2, 2, 2)
    assert model.gate.squeeze.weight.shape == (4, 16)
    assert model.dropout.p == 0.5
    assert model.normalization.convention == "dequantize"


def test_every_value_is_copied(variables: dict[str, np.ndarray]) -> None:
    """Compares each variable element by element, in both layouts."""
    model = convert.load_nextvlad_tf(variables, 7)
    state = model.state_dict()
    names = convert._variable_names()
    assert state.keys() == names.keys()
    assert set(names.values()) == variables.keys()
    for key, name in names.items():
        found = state[key].numpy()
        if name.endswith("cluster_weights2"):
            np.testing.assert_array_equal(found, variables[name][0])
        elif found.ndim == 2:
            np.testing.assert_array_equal(found, variables[name].T)
        else:
            np.testing.assert_array_equal(found, variables[name])


def test_names_of_a_checkpoint(variables: dict[str, np.ndarray]) -> None:
    """A ":0" at the end, float64, and the optimiser's variables make no difference."""
    checkpoint: dict[str, np.ndarray] = {
        f"{name}:0": value.astype(np.float64) for name, value in variables.items()
    }
    checkpoint |= {
        "global_step": np.int64(3),
        "beta1_power": np.float32(0.1),
        "tower/hidden1_weights/Adam": variables["tower/hidden1_weights"],
        "tower/hidden1_weights/Adam_1:0": variables["tower/hidden1_weights"],
    }
    a, b = convert.load_nextvlad_tf(variables, 7), convert.load_nextvlad_tf(checkpoint, 7)
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key])


def test_options_and_saving(variables: dict[str, np.ndarray], tmp_path: Path) -> None:
    eigenvalues = np.linspace(3, 0.1, 2048, dtype=np.float32).reshape(-1, 1)
    model = convert.load_nextvlad_tf(
        variables, 7, dropout=0.75, normalization="unwhiten", eigenvalues=eigenvalues
    )
    assert model.dropout.p == 0.75
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    frames = torch.randint(0, 256, (2, 3, 1152), dtype=torch.uint8)
    num_frames = torch.tensor([3, 1])
    assert torch.equal(model.eval()(frames, num_frames), again(frames, num_frames))


def test_missing_and_unexpected_variables(variables: dict[str, np.ndarray]) -> None:
    broken = dict(variables)
    broken["tower/hidden1_biases"] = broken.pop("tower/hidden1_weights")
    with pytest.raises(
        ValueError,
        match=r"missing: tower/hidden1_weights; unexpected: tower/hidden1_biases",
    ):
        convert.load_nextvlad_tf(broken, 7)
    with pytest.raises(ValueError, match=r"variables: .*missing: .*tower/video_VLAD"):
        convert.load_nextvlad_tf({}, 7)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("tower/hidden1_weights", (1, 16), r"tower/hidden1_weights: expected shape \(.*, 16\)"),
        ("tower/hidden1_bn/beta", (17,), r"tower/hidden1_bn/beta: expected shape \(16,\)"),
        ("tower/audio_VLAD/cluster_weights2", (128, 2), r"weights2: expected shape \(1, 128, 2\)"),
        ("tower/video_VLAD/cluster_weights2", (512, 4), "cluster_weights2: expected 3 dimensions"),
        ("tower/gating_weights_1", (16, 0), r"gating_weights_1: expected .* found shape \(16, 0\)"),
        ("tower/gating_weights_1", (16, 5), r"gating_weights_2: expected shape \(5, 16\)"),
    ],
)
def test_shapes_that_do_not_fit(
    variables: dict[str, np.ndarray], name: str, shape: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert.load_nextvlad_tf(variables | {name: np.zeros(shape, np.float32)}, 7)


def test_wrong_arguments(variables: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"fully_connected/\w+: expected shape .*8.*num_classes=8"):
        convert.load_nextvlad_tf(variables, 8)
    with pytest.raises(ValueError, match=r"clusters: expected no value"):
        convert.load_nextvlad_tf(variables, 7, clusters=4)
    with pytest.raises(ValueError, match=r"head: expected no value, .* logistic"):
        convert.load_nextvlad_tf(variables, 7, head="moe")
    with pytest.raises(ValueError, match=r"overrides: .*unknown argument of nextvlad1 'drop'"):
        convert.load_nextvlad_tf(variables, 7, drop=0.1)


@pytest.fixture(scope="module")
def mixture_variables() -> dict[str, np.ndarray]:
    return draw_variables(mixture_shapes(4, 16, 4, 4, 7, count=2), seed=0)


def test_every_value_of_a_mixture_is_copied(
    mixture_variables: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = convert.load_mix_nextvlad_tf(mixture_variables, 7, dropout=0.25, distillation=9.0)
    assert len(model.branches) == 2
    assert model.padded_mean
    assert model.distillation == 9.0
    assert [branch.dropout.p for branch in model.branches] == [0.25, 0.25]
    names = convert._mixture_names(2)
    for saved in (False, True):
        if saved:
            models.save(model, tmp_path)
            model = models.load(tmp_path)
        state = model.state_dict()
        assert state.keys() == names.keys()
        assert set(names.values()) == mixture_variables.keys()
        for key, name in names.items():
            expected = mixture_variables[name]
            found = state[key].numpy()
            expected = expected[0] if name.endswith("cluster_weights2") else expected.T
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_mixtures_that_do_not_fit(mixture_variables: dict[str, np.ndarray]) -> None:
    def load(changes: dict[str, np.ndarray], **options: object) -> None:
        convert.load_mix_nextvlad_tf(mixture_variables | changes, 7, **options)

    with pytest.raises(ValueError, match=r"missing: tower/branch_0/audio_vlad/"):
        convert.load_mix_nextvlad_tf({}, 7)
    with pytest.raises(ValueError, match=r"missing: tower/branch_2/.*unexpected: tower/branch_7/x"):
        load({"tower/branch_7/x": np.zeros(1)})
    name = "tower/mix_weights/weights"
    with pytest.raises(ValueError, match=rf"{name}: expected shape \(1152, 2\).*\(1152, 3\)"):
        load({name: np.zeros((1152, 3))})
    name = "tower/branch_1/hidden1_bn/beta"
    with pytest.raises(ValueError, match=rf"{name}: expected shape \(16,\).*found \(17,\)"):
        load({name: np.zeros(17)})
    for key, value in (("branches", ["nextvlad1"]), ("clusters", 4), ("weights", "static")):
        with pytest.raises(ValueError, match=f"{key}: expected no value"):
            load({}, **{key: value})
    with pytest.raises(ValueError, match=r"overrides: .*unknown argument of the mixture 'drop'"):
        load({}, drop=0.1)
