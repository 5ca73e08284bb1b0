"""The GRU and its classifier against their definitions, and in every mode of use."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

from pyseg import models
from pyseg.nn import GRU, AttentionGRU
from pyseg.ops.frames import dequantize
from pyseg.ops.gru import fused_gru

SIZES = (12, 6)
SMALL = {
    "feature_sizes": SIZES,
    "gru_size": 8,
    "attention_size": 5,
    "hidden_size": 16,
    "reduction": 4,
}


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


def make_model(num_classes: int = 7, **options: object) -> AttentionGRU:
    arguments = SMALL | {"dropout": 0.0} | options
    return scramble(AttentionGRU(num_classes, **arguments))  # type: ignore[arg-type,return-value]


def make_frames(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length, sum(SIZES))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def reference_gru(gru: GRU) -> nn.GRU:
    same = nn.GRU(gru.input_size, gru.hidden_size, gru.num_layers, batch_first=True)
    same.load_state_dict(gru.state_dict())
    return same.to(gru.weight_ih_l0.dtype)


@pytest.fixture(params=["op", "fused"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of the GRU: as on the CPU, and as on a GPU, where cuDNN takes it."""
    accepted = request.param == "fused"
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: accepted)
    return accepted


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_gru_is_that_of_pytorch(fused: bool, layers: int, dtype: torch.dtype) -> None:
    gru = GRU(18, 8, layers).double()
    frames = make_frames(3, 6)
    mask = torch.arange(6) < torch.tensor([[6], [1], [4]])
    x = dequantize(frames, mask, torch.float64)
    reference = reference_gru(gru)
    found = gru(frames if dtype == torch.uint8 else x, mask)
    assert (found.grad_fn.name() != "GradientBackward") == fused  # that of our operators
    expected = reference(x)[0]
    torch.testing.assert_close(found, expected)
    for states in (found, expected):
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    for name, parameter in gru.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad)


def test_padding_never_enters(fused: bool) -> None:
    """Neither the states at valid frames nor, if only those are read, any gradient."""
    gru = GRU(18, 8, 2).double()
    mask = torch.arange(6) < torch.tensor([[6], [1], [4]])
    results = []
    for padding in (0.0, 1e3):
        x = torch.randn(3, 6, 18, generator=torch.manual_seed(0), dtype=torch.float64)
        x = x.masked_fill(~mask.unsqueeze(-1), padding).requires_grad_()
        states = gru(x)[mask]
        results.append([states, *torch.autograd.grad(states.sum(), [x, *gru.parameters()])])
        assert not results[-1][1][~mask].any()
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_without_frames_or_videos(fused: bool) -> None:
    for batch, length in ((2, 0), (0, 3)):
        assert GRU(18, 8)(torch.randn(batch, length, 18)).shape == (batch, length, 8)


def test_under_autocast_states_are_float32(fused: bool) -> None:
    gru, x = GRU(18, 8), make_frames(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        states = gru(x)
        again = gru(dequantize(x, None, torch.bfloat16))
    assert states.dtype == again.dtype == torch.float32
    torch.testing.assert_close(
        states, reference_gru(gru)(dequantize(x, None, torch.float32))[0], atol=2e-2, rtol=0
    )


def test_cudnn_takes_the_arguments() -> None:
    """By its rule for shapes, which needs no GPU."""
    with FakeTensorMode(), torch.no_grad():
        sizes = ((2, 5, 18), (24, 18), (24, 8), (24,), (24,))
        states = fused_gru(*(torch.empty(size, device="cuda") for size in sizes))
    assert states.shape == (2, 5, 8)


def test_a_traced_gru_is_one_node(fused: bool) -> None:
    program = torch.export.export(GRU(18, 8), (torch.randn(2, 5, 18),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("pyseg.gru_recurrence.default") == 1


def test_gru_is_initialized_like_that_of_pytorch() -> None:
    torch.manual_seed(0)
    for tensor in GRU(40, 25, num_layers=2).state_dict().values():
        assert tensor.abs().max() <= 1 / 5
        assert tensor.std().item() == pytest.approx(0.2 / math.sqrt(3), rel=0.2)


@pytest.mark.parametrize("layers", [1, 2])
def test_final_state_is_that_of_packed_sequences(layers: int) -> None:
    """A unidirectional GRU needs no packing: the states at valid frames are the same."""
    gru = GRU(18, 8, layers).double()
    x = torch.randn(4, 7, 18, dtype=torch.float64)
    num_frames = torch.tensor([3, 7, 1, 4])
    packed = pack_padded_sequence(x, num_frames, batch_first=True, enforce_sorted=False)
    expected = reference_gru(gru)(packed)[1][-1]
    torch.testing.assert_close(gru(x)[torch.arange(4), num_frames - 1], expected)


@pytest.mark.parametrize("layers", [1, 2])
def test_classifier_is_its_definition(layers: int) -> None:
    """Video by video, over its valid frames only, in float64."""
    model = make_model(gru_layers=layers).double().eval()
    gru = reference_gru(model.gru)
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    frames, valid = make_frames(3, 5), [5, 3, 1]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - w[f"{name}.running_mean"]) / np.sqrt(w[f"{name}.running_var"] + 1e-3)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    expected = []
    for video, count in zip(frames, valid, strict=True):
        with torch.no_grad():
            x = dequantize(video[None, :count], None, torch.float64)
            states = gru(x)[0][0].numpy()
        final = states[-1]
        query = w["query.weight"] @ final
        energies = []
        for state in states:
            keys = w["keys.weight"] @ state + w["keys.bias"]
            energies.append(w["energy.weight"][0] @ np.tanh(keys + query))
        attention = np.exp(energies) / np.exp(energies).sum()
        context = sum(a * state for a, state in zip(attention, states, strict=True))
        hidden = norm(w["hidden.weight"] @ np.concatenate((context, final)), "hidden_norm")
        inner = np.maximum(norm(w["gate.squeeze.weight"] @ hidden, "gate.norm"), 0)
        gate = 1 / (1 + np.exp(-w["gate.excite.weight"] @ inner))
        expected.append(w["head.linear.weight"] @ (hidden * gate) + w["head.linear.bias"])
    found = model(frames, torch.tensor(valid)).detach().numpy()
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalization", ["l2", "unwhiten", "raw"])
def test_padding_never_changes_a_prediction(normalization: str) -> None:
    eigenvalues = torch.linspace(3, 0.1, 12) if normalization == "unwhiten" else None
    model = make_model(normalization=normalization, eigenvalues=eigenvalues).eval()
    model.normalization.load_state_dict({} if eigenvalues is None else {"eigenvalues": eigenvalues})
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
        assert torch.equal(model(alone), logits)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_frames", [[0, 3], [0, 0]])
def test_a_video_without_frames_is_finite(training: bool, num_frames: list[int]) -> None:
    """The softmax over no frame must not be NaN."""
    model = make_model().train(training)
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
    logits = make_model().eval()(make_frames(*shape))
    assert logits.shape == (shape[0], 7)
    assert logits.isfinite().all()


def test_compiles_whole_for_any_batch_and_length() -> None:
    torch._dynamo.reset()
    options = {"gru_layers": 2, "feature_sizes": (sum(SIZES),)}
    model, plain = (make_model(**options) for _ in range(2))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for index, (batch, length) in enumerate(((4, 6), (3, 5))):
        frames, num_frames = make_frames(batch, length), torch.arange(batch) % length + 1
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            found, expected = compiled(frames, num_frames), plain(frames, num_frames)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
    for (name, a), (_, b) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_exports_for_floats_with_any_batch_and_length() -> None:
    model = make_model().eval()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    program = torch.export.export(
        model,
        (make_frames(3, 6) / 64 - 2, torch.tensor([6, 4, 2])),
        dynamic_shapes=({0: batch, 1: length}, {0: batch}),
    )
    for shape in ((3, 6), (2, 9), (1, 1)):
        frames, num_frames = make_frames(*shape) / 64 - 2, torch.arange(shape[0]) % shape[1] + 1
        torch.testing.assert_close(program.module()(frames, num_frames), model(frames, num_frames))


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast_over_a_whole_video(training: bool) -> None:
    frames = make_frames(8, 300)
    num_frames = torch.tensor([300, 1, 2, 3, 4, 300, 5, 300])
    exact = make_model().double().train(training)(frames, num_frames)
    model = make_model().train(training)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(frames, num_frames)
    assert (logits.double() - exact).norm() / exact.norm() < 0.05
    logits.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_preset() -> None:
    with torch.device("meta"):
        model = models.create("attention-gru", num_classes=3862)
    assert (model.gru.input_size, model.gru.hidden_size, model.gru.num_layers) == (1152, 1024, 1)
    assert sum(p.numel() for p in model.parameters()) == 20_376_598


def test_the_head_is_made_from_its_sizes() -> None:
    model = make_model(head=lambda size, classes: nn.Linear(size, classes, bias=False))
    assert model.head.weight.shape == (7, 16)
    assert model(make_frames(2, 3)).shape == (2, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gru_size": 0}, "gru_size: expected at least 1, found 0"),
        ({"gru_layers": 0}, "gru_layers: expected at least 1, found 0"),
        ({"attention_size": 0}, "attention_size: expected at least 1, found 0"),
        ({"hidden_size": 0}, "hidden_size: expected at least 1, found 0"),
        ({"reduction": 17}, r"reduction: expected 1\.\.16, found 17"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), found 1.0"),
        ({"num_classes": 0}, "num_classes: expected at least 1, found 0"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)
    with pytest.raises(ValueError, match="num_layers: expected at least 1, found 0"):
        GRU(3, 2, 0)


def test_bad_input() -> None:
    model = make_model().eval()
    with pytest.raises(ValueError, match=r"frames: expected .* 18\).*12 \+ 6; found \(1, 2, 17\)"):
        model(torch.zeros(1, 2, 17), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"num_frames: expected values in 1\.\.2 .* found 0"):
        model(torch.zeros(1, 2, 18), torch.tensor([0]))
