"""The mixture against its definition, its training loss, and in every mode of use."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyseg import models
from pyseg.nn import AttentionGRU, FrameClassifier, Mixture, NeXtVLADClassifier
from pyseg.ops.frames import dequantize

SIZES = (12, 6)
BRANCH = {"feature_sizes": SIZES, "hidden_size": 16, "reduction": 4, "dropout": 0.0}
VLAD = {"clusters": 4, "groups": 2}
GRU = {"gru_size": 8, "attention_size": 5}
PRESETS = {"paper-mixture": 4, "3nextvlad-same": 3, "3nextvlad-diff": 3}


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
            elif name.endswith("eigenvalues"):
                continue
            tensor.copy_(value)
    return module


def make_branches(num_classes: int = 7, **options: object) -> list[FrameClassifier]:
    shared = BRANCH | options
    return [
        NeXtVLADClassifier(num_classes, **(VLAD | shared)),  # type: ignore[arg-type]
        NeXtVLADClassifier(num_classes, **(VLAD | shared | {"clusters": 6})),  # type: ignore[arg-type]
        AttentionGRU(num_classes, **(GRU | shared)),  # type: ignore[arg-type]
    ]


def make_model(**options: object) -> Mixture:
    keys = "normalization", "eigenvalues"
    of_branches = {key: options.pop(key) for key in keys if key in options}
    return scramble(Mixture(make_branches(**of_branches), **options))  # type: ignore[arg-type,return-value]


def make_frames(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length, sum(SIZES))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def small(name: str, num_classes: int = 7, **overrides: object) -> FrameClassifier:
    sizes = BRANCH | VLAD | (GRU if name == "paper-mixture" else {})
    return models.create(name, num_classes=num_classes, **(sizes | overrides))


@pytest.mark.parametrize("padded_mean", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_its_definition(padded_mean: bool, training: bool) -> None:
    model = make_model(padded_mean=padded_mean).double().train(training)
    frames, num_frames = make_frames(4, 6), torch.tensor([6, 3, 1, 4])
    mask = torch.arange(6) < num_frames[:, None]
    x = dequantize(frames, mask, torch.float64)
    logits = torch.stack([branch(x, num_frames) for branch in make_twins(model)], 1)
    mean = x.sum(1) / (6 if padded_mean else num_frames[:, None])
    norm = model.gate_norm
    var, center = norm.running_var, norm.running_mean
    if training:
        var, center = mean.var(0, correction=0), mean.mean(0)
        expected_var = torch.lerp(norm.running_var, mean.var(0), 0.001)  # the unbiased one
    mean = (mean - center) / (var + 1e-3).sqrt() * norm.weight + norm.bias
    weights = (mean @ model.gate.weight.T + model.gate.bias).softmax(1)
    outputs = model.outputs(frames, num_frames)
    torch.testing.assert_close(outputs.branches, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs.weights, weights, rtol=1e-9, atol=1e-9)
    mix = torch.einsum("bm,bmc->bc", weights, logits)
    torch.testing.assert_close(outputs.logits, mix, rtol=1e-9, atol=1e-9)
    if training:
        torch.testing.assert_close(norm.running_var, expected_var, rtol=1e-9, atol=1e-9)
    else:
        assert torch.equal(model(frames, num_frames), outputs.logits)


def make_twins(model: Mixture) -> list[FrameClassifier]:
    """Copies of the branches, so that those of the mixture keep their statistics."""
    twins = make_branches()
    for twin, branch in zip(twins, model.branches, strict=True):
        twin.double().load_state_dict(branch.state_dict())
        twin.train(branch.training)
    return twins


def test_static_weights_are_learned_and_the_same_for_all() -> None:
    model = make_model(weights="static").eval()
    assert not hasattr(model, "gate")
    frames, num_frames = make_frames(3, 5), torch.tensor([5, 1, 4])
    outputs = model.outputs(frames, num_frames)
    expected = model.gate_logits.softmax(0)
    torch.testing.assert_close(outputs.weights, expected.expand(3, 3))
    mix = (expected[:, None] * outputs.branches).sum(1)
    torch.testing.assert_close(outputs.logits, mix)
    outputs.logits.square().sum().backward()
    assert model.gate_logits.grad.abs().sum() > 0
    fresh = Mixture(make_branches(), weights="static")
    torch.testing.assert_close(fresh.gate_logits.softmax(0), torch.full((3,), 1 / 3))


@pytest.mark.parametrize("weights", ["static", "input"])
@pytest.mark.parametrize("training", [False, True])
def test_a_mixture_of_one_is_that_one(weights: str, training: bool) -> None:
    branch, alone = (scramble(make_branches()[0]).train(training) for _ in range(2))
    model = Mixture([branch], weights=weights).train(training)  # type: ignore[arg-type,list-item]
    x, num_frames = dequantize(make_frames(3, 5), None, torch.float32), torch.tensor([5, 1, 4])
    assert torch.equal(model(x, num_frames), alone(x, num_frames))


@pytest.mark.parametrize(("temperature", "distillation"), [(1.0, 0.0), (1.0, 0.5), (3.0, 9.0)])
def test_training_loss_is_its_definition(temperature: float, distillation: float) -> None:
    """criterion(mix) + sum of criterion(branch) + lambda KL(mix || branch), in float64."""
    model = make_model(temperature=temperature, distillation=distillation).double().eval()
    frames, num_frames = make_frames(4, 6), torch.tensor([6, 3, 1, 4])
    targets = (torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) < 0.3).double()

    def criterion(logits: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / 4

    found = model.training_loss(frames, num_frames, criterion)
    found_gradients = torch.autograd.grad(found, model.parameters())

    logits, branches, _ = model.outputs(frames, num_frames)
    expected = criterion(logits)
    for branch in range(3):
        expected = expected + criterion(branches[:, branch])
    teacher = (logits / temperature).exp()
    teacher = teacher / teacher.sum(1, keepdim=True)
    for video in range(4):
        for branch in range(3):
            student = (branches[video, branch] / temperature).exp()
            student = student / student.sum()
            for c in range(7):
                p, q = teacher[video, c], student[c]
                expected = expected + distillation * p * (p.log() - q.log()) / 4
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(expected, model.parameters())
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-8, atol=1e-10)


def test_distillation_moves_both_sides() -> None:
    """As in the reference the teacher has a gradient: the gate gets one from distillation alone."""
    model = make_model(distillation=2.0)
    loss = model.training_loss(make_frames(4, 5), None, lambda logits: logits.sum() * 0)
    loss.backward()
    assert loss > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_the_default_training_loss_is_the_criterion() -> None:
    branch = make_branches()[0].eval()
    frames, num_frames = make_frames(2, 3), torch.tensor([3, 1])
    loss = branch.training_loss(frames, num_frames, lambda logits: logits.square().mean())
    assert torch.equal(loss, branch(frames, num_frames).square().mean())


@pytest.mark.parametrize("normalization", ["l2", "unwhiten", "raw"])
def test_padding_never_changes_a_prediction(normalization: str) -> None:
    eigenvalues = torch.linspace(3, 0.1, 12) if normalization == "unwhiten" else None
    model = make_model(normalization=normalization, eigenvalues=eigenvalues).eval()
    num_frames, frames = torch.tensor([4, 2, 6]), make_frames(3, 6)
    padded = torch.arange(6) >= num_frames[:, None]
    expected = model(frames, num_frames)
    changed = frames.clone()
    changed[padded] = 255 - changed[padded]
    assert torch.equal(model(changed, num_frames), expected)

    floats = frames.float() if normalization == "raw" else dequantize(frames, None, torch.float32)
    of_floats = model(floats, num_frames)
    torch.testing.assert_close(of_floats, expected)
    for garbage in (1e30, float("nan"), float("inf")):
        floats[padded] = garbage
        assert torch.equal(model(floats, num_frames), of_floats)

    longer = nn.functional.pad(frames, (0, 0, 0, 25), value=77)
    torch.testing.assert_close(model(longer, num_frames), expected)
    for index, length in enumerate(num_frames.tolist()):
        alone = frames[index : index + 1, :length]
        logits = model(alone, torch.tensor([length]))
        torch.testing.assert_close(logits[0], expected[index])
        torch.testing.assert_close(model(alone), logits)


@pytest.mark.parametrize("normalization", ["dequantize", "unwhiten"])
def test_the_references_mean_counts_padding(normalization: str) -> None:
    """So the weights of a video depend on its padding and on the padding's normalised value."""
    eigenvalues = torch.linspace(3, 0.1, 12) if normalization == "unwhiten" else None
    options = {"normalization": normalization, "eigenvalues": eigenvalues, "padded_mean": True}
    model = make_model(**options).eval()
    frames, num_frames = make_frames(3, 6), torch.tensor([4, 2, 6])
    x, mask = model.prepare(frames, num_frames)
    expected = model.gate(model.gate_norm(x.mean(1))).softmax(1)
    weights = model.outputs(frames, num_frames).weights
    torch.testing.assert_close(weights, expected)
    changed = frames.clone()
    changed[~mask] = 3  # the content of padding before the normalisation does not matter
    assert torch.equal(model.outputs(changed, num_frames).weights, weights)
    longer = nn.functional.pad(frames, (0, 0, 0, 25))
    assert not torch.allclose(model.outputs(longer, num_frames).weights, weights, atol=1e-2)


@pytest.mark.parametrize("training", [False, True])
def test_a_video_without_frames_is_finite(training: bool) -> None:
    model = make_model().train(training)
    mask = torch.arange(3) < torch.tensor([[0], [3]])
    x = dequantize(make_frames(2, 3), mask, torch.float32)
    logits = model.classify(x, mask)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_empty_batches(shape: tuple[int, int]) -> None:
    logits = make_model().eval()(make_frames(*shape))
    assert logits.shape == (shape[0], 7)
    assert logits.isfinite().all()


def test_noise_is_drawn_once_for_all_branches() -> None:
    seen = []
    model = make_model(noise=0.1)
    for branch in model.branches:
        original = branch.classify
        branch.classify = lambda x, mask, f=original: (seen.append(x), f(x, mask))[1]
    frames = make_frames(2, 4)
    model(frames)
    assert len(seen) == 3
    assert all(x is seen[0] for x in seen)
    assert not torch.equal(seen[0], dequantize(frames, None, torch.float32))
    model.eval()(frames)
    assert torch.equal(seen[-1], dequantize(frames, None, torch.float32))


def test_compiles_whole_for_any_batch_and_length() -> None:
    torch._dynamo.reset()
    model = scramble(Mixture(make_branches()[2:])).eval()  # the branches have tests of their own
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for index, (batch, length) in enumerate(((4, 6), (3, 5))):
        frames, num_frames = make_frames(batch, length), torch.arange(batch) % length + 1
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=index > 0):
            torch.testing.assert_close(compiled(frames, num_frames), model(frames, num_frames))


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast(training: bool) -> None:
    frames, num_frames = make_frames(8, 5), torch.tensor([5, 1, 2, 3, 4, 5, 5, 5])
    exact = make_model().double().train(training).outputs(frames, num_frames)
    model = make_model(distillation=1.0).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.outputs(frames, num_frames)
        loss = model.training_loss(frames, num_frames, lambda z: z.square().sum(1).mean())
    assert (outputs.logits.double() - exact.logits).norm() / exact.logits.norm() < 0.05
    torch.testing.assert_close(outputs.weights.double(), exact.weights, rtol=0, atol=1e-5)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("paper-mixture", {"weights": "static", "noise": 0.1}),
        ("3nextvlad-diff", {"padded_mean": True, "temperature": 3.0, "distillation": 9.0}),
        (
            "3nextvlad-same",
            {
                "branches": ["nextvlad1", {"name": "nextvlad2", "clusters": 6}],
                "normalization": "l2",
            },
        ),
        (
            "paper-mixture",
            {"normalization": "unwhiten", "eigenvalues": torch.linspace(3, 0.1, 20)},
        ),
    ],
)
def test_round_trip_is_exact(name: str, overrides: dict, tmp_path: Path) -> None:
    model = small(name, **overrides)
    model(make_frames(4, 5), torch.tensor([5, 4, 1, 2]))  # so that statistics have moved
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.config == model.config
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    frames, num_frames = make_frames(3, 4), torch.tensor([4, 1, 2])
    assert torch.equal(model.eval()(frames, num_frames), again(frames, num_frames))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("training", [False, True])
def test_same_on_a_gpu(training: bool) -> None:
    frames, num_frames = make_frames(4, 6), torch.tensor([6, 4, 1, 2])
    expected, model = make_model().train(training), make_model().train(training).cuda()
    logits = model(frames.cuda(), num_frames.cuda())
    torch.testing.assert_close(logits.cpu(), expected(frames, num_frames), rtol=1e-3, atol=1e-4)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_presets_are_those_of_the_paper() -> None:
    parameters = {}
    for name, branches in PRESETS.items():
        with torch.device("meta"):
            model = models.create(name, num_classes=3862)
        assert len(model.branches) == branches
        parameters[name] = sum(p.numel() for p in model.parameters())
        clusters = [b.branches[0].clusters for b in model.branches if hasattr(b, "branches")]
        inner = [b.gate.squeeze.out_features for b in model.branches]
        assert clusters == [112, 112 if name == "3nextvlad-same" else 136, 112]
        assert inner[:3] == [128, 128, 128 if name == "3nextvlad-same" else 256]
        assert model.weights == "input"
        assert not model.padded_mean
        assert model.distillation == 0.0
    gate = 2 * 1152 + 1152 * 3 + 3
    assert parameters["3nextvlad-same"] == 3 * 78_643_170 + gate  # the NeXtVLAD paper's 237M
    gru = parameters["paper-mixture"] - parameters["3nextvlad-diff"]
    assert gru == 20_376_598 + 1152 + 1


def test_an_override_goes_to_all_parts_that_take_it() -> None:
    overrides = {
        "feature_sizes": [12, 6],
        "hidden_size": 16,
        "clusters": 4,
        "groups": 2,
        "gru_size": 8,
        "dropout": 0.25,
        "batch_norm_momentum": 0.5,
        "noise": 0.2,
        "temperature": 2.0,
        "branches": ["attention-gru", {"name": "nextvlad3", "clusters": 6, "dropout": 0}],
    }
    assert json.loads(json.dumps(overrides)) == overrides
    model = models.create("paper-mixture", num_classes=3, **overrides)
    gru, vlad = model.branches
    assert isinstance(gru, AttentionGRU)
    assert (gru.gru.hidden_size, vlad.branches[0].clusters) == (8, 6)
    assert (gru.dropout.p, vlad.dropout.p) == (0.25, 0.0)
    assert gru.hidden_norm.momentum == vlad.hidden_norm.momentum == 0.5
    assert model.gate_norm.momentum == 0.5
    assert (model.noise.sigma, gru.noise.sigma, vlad.noise.sigma) == (0.2, 0.0, 0.0)
    assert vlad.gate.squeeze.out_features == 2  # nextvlad3's own reduction
    assert model.config.overrides == overrides


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cluster": 3}, "overrides: .*argument of the mixture 'cluster'.*mean 'clusters'"),
        ({"gru_size": 3}, "overrides: .*unknown argument of the mixture 'gru_size'"),
        ({"branches": []}, r"branches: expected a list of presets, found \[\]"),
        ({"branches": "nextvlad1"}, "branches: expected a list of presets, found 'nextvlad1'"),
        ({"branches": 3}, "branches: expected a list of presets, found 3"),
        ({"branches": [3]}, "branches: expected names of presets, .* found 3"),
        (
            {"branches": [{"clusters": 3}]},
            r"branches: .* names of presets, .* found \{'clusters'",
        ),
        ({"branches": ["nextvlad9"]}, "branches: expected one of .*unknown branch 'nextvlad9'"),
        ({"branches": ["paper-mixture"]}, "branches: expected one of .*'paper-mixture'"),
        (
            {"branches": [{"name": "nextvlad1", "k": 3}]},
            "overrides: .*unknown argument of nextvlad1 'k'",
        ),
        (
            {"branches": [{"name": "nextvlad1", "noise": 0.1}]},
            "branches: expected no noise, .* found 0.1 at index 0",
        ),
    ],
)
def test_bad_overrides(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("3nextvlad-diff", **overrides)


def test_branches_that_do_not_fit_together() -> None:
    good = make_branches()[0]

    def refuse(branch: FrameClassifier, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Mixture([good, branch])

    refuse(make_branches(8)[2], "branches: expected the same num_classes .* 7 .* 8 at index 1")
    refuse(
        make_branches(feature_sizes=(6, 12))[0],
        r"branches: expected the same feature_sizes .*\(12, 6\) .* \(6, 12\) at index 1",
    )
    refuse(
        make_branches(normalization="l2")[0],
        "branches: expected the same normalization .*'dequantize' .*'l2' at index 1",
    )
    whitened = [
        make_branches(normalization="unwhiten", eigenvalues=torch.full((12,), value))[0]
        for value in (1.0, 2.0)
    ]
    with pytest.raises(ValueError, match=r"branches: expected the same eigenvalues .* at index 1"):
        Mixture(whitened)
    with pytest.raises(ValueError, match="branches: expected at least one classifier, found none"):
        Mixture([])
    with pytest.raises(TypeError, match=r"branches: expected classifiers .* Linear at index 1"):
        Mixture([good, nn.Linear(2, 2)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "learned"}, "weights: expected one of input, static; found 'learned'"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0, found 0.0"),
        ({"temperature": float("inf")}, "temperature: expected .* found inf"),
        ({"distillation": -1.0}, "distillation: expected .* at least 0, found -1.0"),
        ({"distillation": float("nan")}, "distillation: expected .* found nan"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_bad_input() -> None:
    model = make_model().eval()
    with pytest.raises(ValueError, match=r"frames: expected .* 18\).*12 \+ 6; found \(1, 2, 17\)"):
        model(torch.zeros(1, 2, 17), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"num_frames: expected values in 1\.\.2 .* found 3"):
        model.outputs(torch.zeros(1, 2, 18), torch.tensor([3]))
