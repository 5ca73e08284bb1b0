"""The public interface: presets, and saving and loading, which is bit-exact or an error."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyseg import models
from pyseg.errors import DataError
from pyseg.labels import LabelCorrelation
from pyseg.models import files
from pyseg.nn import LabelGCN, MixtureOfExperts

SMALL = {"feature_sizes": (12, 6), "clusters": 6, "groups": 2, "hidden_size": 16}

# Options that make presets small, and their running statistics fast enough for a few steps.
_QUICK = {"feature_sizes": (12, 6), "hidden_size": 32, "batch_norm_momentum": 0.2}
_NEXTVLAD = _QUICK | {"clusters": 6, "groups": 2, "reduction": 4, "expansion": 1, "dropout": 0.0}
_DBOF = _QUICK | {"clusters": 64, "num_samples": 6}
_GCN = {"node_size": 8, "gcn_size": 16}
_GRU = {"gru_size": 16, "attention_size": 8}
SMALL_PRESETS: dict[str, dict[str, Any]] = {
    "3nextvlad-diff": _NEXTVLAD,
    "3nextvlad-same": _NEXTVLAD,
    "attention-gru": _QUICK | _GRU | {"reduction": 4, "dropout": 0.0},
    "dbof": _DBOF,
    "dbof-gcn": _DBOF | _GCN,
    "mixture": _NEXTVLAD,
    "linear": {"feature_sizes": (12, 6)},
    "mlp": _QUICK | {"dropout": 0.0},
    "nextvlad-small": _NEXTVLAD,
    "nextvlad1": _NEXTVLAD,
    "nextvlad1-gcn": _NEXTVLAD | _GCN,
    "nextvlad2": _NEXTVLAD,
    "nextvlad3": _NEXTVLAD,
    "paper-mixture": _NEXTVLAD | _GRU,
    "ridge": {"feature_sizes": (12, 6)},
}
every_preset = pytest.mark.parametrize("name", models.names())


def make_preset(name: str, **overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(name, num_classes=4, **(SMALL_PRESETS[name] | overrides))
    if name in ("linear", "ridge"):  # whose weights start at 0
        nn.init.normal_(model.head.linear.weight)
    return model


def unlike_presets(**overrides: Any) -> list[str]:
    """The presets that still differ when small: each takes seconds."""
    return sorted({repr(make_preset(name, **overrides)): name for name in SMALL_PRESETS}.values())


# Together they have every part of every preset; tests/nn traces the parts separately.
PRESETS_TO_TRACE = ("dbof-gcn", "linear", "mlp", "paper-mixture", "ridge")


def make_batch(batch: int = 8, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = batch, length, 18
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return frames, torch.arange(batch) % length + 1


def make(num_classes: int = 5, **overrides: object) -> nn.Module:
    return models.create("nextvlad-small", num_classes=num_classes, **(SMALL | overrides))


def trained(model: nn.Module) -> nn.Module:
    """Takes a step in training mode, so that running statistics are not the initial ones."""
    model.train()(torch.randint(0, 256, (4, 5, 18), dtype=torch.uint8), torch.tensor([5, 4, 1, 2]))
    return model


def assert_same(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype, key
        assert torch.equal(value, right[key]), key


def test_parameter_count_of_the_paper() -> None:
    with torch.device("meta"):
        model = models.create("nextvlad1", num_classes=3862)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 78_643_170


@pytest.mark.parametrize("wrong", ["44", 44.0, True, None])
def test_invalid_numbers_of_classes(wrong: object) -> None:
    for make in (models.create, models.count_parameters):
        with pytest.raises(ValueError, match=f"num_classes: expected an integer, found {wrong!r}"):
            make("mlp", num_classes=wrong)  # type: ignore[arg-type]
    assert models.create("mlp", num_classes=np.int64(3)).num_classes == 3


@pytest.mark.parametrize(
    ("name", "clusters", "hidden_size", "reduction"),
    [("nextvlad1", 112, 2048, 16), ("nextvlad2", 136, 2048, 16), ("nextvlad3", 112, 2048, 8)],
)
def test_presets_of_the_paper(name: str, clusters: int, hidden_size: int, reduction: int) -> None:
    with torch.device("meta"):
        model = models.create(name, num_classes=10)
    video, audio = model.branches
    assert (video.feature_size, video.clusters) == (1024, clusters)
    assert (video.groups, video.expansion) == (8, 2)
    assert (audio.feature_size, audio.clusters, audio.groups) == (128, clusters // 2, 4)
    assert model.hidden.weight.shape == (hidden_size, 288 * clusters)
    assert model.gate.squeeze.weight.shape == (hidden_size // reduction, hidden_size)
    assert model.dropout.p == 0.5
    assert model.hidden_norm.momentum == 0.001


def test_presets_of_the_starter_code_and_of_a_graph() -> None:
    """Sizes of the starter code; the graph replaces only the head."""
    with torch.device("meta"):
        made = {name: models.create(name, num_classes=50) for name in models.names()}
    dbof = made["dbof"]
    assert dbof.normalization.convention == "l2"
    assert (dbof.bag.project.out_features, dbof.hidden.out_features) == (8192, 1024)
    assert (dbof.num_samples, dbof.head.mixtures) == (30, 2)
    for name in ("dbof", "nextvlad1"):
        graph = made[f"{name}-gcn"].head
        assert (graph.nodes.shape, graph.first.shape) == ((50, 300), (300, 1024))
        assert isinstance(graph.graph.weight, nn.Parameter)  # "trained by model"
        rest = {
            key: tuple(value.shape)
            for key, value in made[f"{name}-gcn"].state_dict().items()
            if not key.startswith("head.")
        }
        assert rest == {
            key: tuple(value.shape)
            for key, value in made[name].state_dict().items()
            if not key.startswith("head.")
        }


@every_preset
def test_preset_trains_a_step(name: str) -> None:
    model = make_preset(name)
    assert model.config == models.ModelConfig(name, 4, json.loads(json.dumps(SMALL_PRESETS[name])))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    logits = model(*make_batch())
    assert logits.shape == (8, 4)
    logits.square().sum().backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        assert value.isfinite().all(), key
        assert value.is_floating_point(), key
        if not key.endswith("step_factors"):  # every parameter and every statistic
            assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", unlike_presets())
def test_preset_overfits_eight_videos(name: str) -> None:
    if name in ("linear", "ridge"):
        pytest.skip("logistic regression on means needs more steps")
    model = make_preset(name)
    frames, num_frames = make_batch()
    labels = torch.eye(4).repeat(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        logits = model(frames, num_frames)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert torch.equal(model.eval()(frames, num_frames) > 0, labels > 0)


@every_preset
def test_preset_round_trips_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, (frames, num_frames) = make_preset(name), make_batch()
    model(frames, num_frames)  # moves the statistics
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert_same(model, again)
    assert again.config == model.config
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert torch.equal(model.eval()(frames, num_frames), again(frames, num_frames))
    # aligned like torch's own tensors: some libraries' products depend on it in the last bit
    assert all(value.data_ptr() % 64 == 0 for value in again.state_dict().values())


@every_preset
def test_preset_predictions_do_not_depend_on_the_batch(name: str) -> None:
    """Nor on the content of padding."""
    model = make_preset(name)
    frames, num_frames = make_batch()
    model(frames, num_frames)
    model.eval()
    expected = model(frames, num_frames)
    for index, count in enumerate(num_frames.tolist()):
        alone = frames[index : index + 1, :count]
        torch.testing.assert_close(model(alone, torch.tensor([count]))[0], expected[index])
        torch.testing.assert_close(model(alone)[0], expected[index])
    longer = nn.functional.pad(frames, (0, 0, 0, 20), value=77)
    torch.testing.assert_close(model(longer, num_frames), expected)
    padded = torch.arange(6) >= num_frames[:, None]
    changed = frames.clone()
    changed[padded] = 255 - changed[padded]
    assert torch.equal(model(changed, num_frames), expected)
    floats = frames * (4 / 255) + (4 / 512 - 2)
    expected = model(floats, num_frames)
    for garbage in (1e30, float("nan"), float("inf")):
        changed = floats.clone()
        changed[padded] = garbage
        assert torch.equal(model(changed, num_frames), expected)


ONE_FEATURE = {"feature_sizes": (18,)}  # half of the graph of a NeXtVLAD


def assert_compiles_whole(make: Callable[[], nn.Module]) -> None:
    """Compares logits, gradients and buffers of a compiled model with those of a plain one."""
    torch._dynamo.reset()
    model, plain = make(), make()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for call, each in ((compiled, model), (plain, plain)):
        torch.manual_seed(0)
        logits = call(*make_batch())
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in each.parameters()), *each.buffers()])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", PRESETS_TO_TRACE)
def test_preset_compiles(name: str) -> None:
    assert_compiles_whole(lambda: make_preset(name, **ONE_FEATURE))


@pytest.mark.parametrize("name", PRESETS_TO_TRACE)
def test_preset_exports(name: str) -> None:
    model = make_preset(name)
    model(*make_batch())
    model.eval()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    program = torch.export.export(
        model, make_batch(3, 6), dynamic_shapes=({0: batch, 1: length}, {0: batch})
    )
    for shape in ((3, 6), (5, 9)):
        arguments = make_batch(*shape)
        torch.testing.assert_close(program.module()(*arguments), model(*arguments))


@every_preset
@pytest.mark.parametrize("training", [False, True])
def test_preset_in_bfloat16_autocast(name: str, training: bool) -> None:
    results = []
    for dtype, autocast in ((torch.float64, False), (torch.float32, True)):
        model = make_preset(name).to(dtype)
        model(*make_batch())
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results.append(model.train(training)(*make_batch()))
    exact, logits = results
    assert (logits.double() - exact).norm() / exact.norm() < 0.05
    logits.float().square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, key
        assert parameter.grad.isfinite().all(), key
    assert all(buffer.dtype != torch.bfloat16 for buffer in model.buffers())


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"name: .*nextvlad3, .*'nextvlad4'.*did you mean"):
        models.create("nextvlad4", num_classes=2)
    with pytest.raises(ValueError, match=r"overrides: .* 'hidden'.*did you mean 'hidden_size'"):
        models.create("nextvlad1", num_classes=2, hidden=3)
    with pytest.raises(ValueError, match=r"overrides: expected numbers, .*not JSON serializable"):
        make(dropout=object())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    model = trained(make()).to(dtype)
    models.save(model, tmp_path / "a" / "b", class_names=list("abcde"))
    again = models.load(tmp_path / "a" / "b")
    assert_same(model, again)
    assert not again.training
    assert list(again.config.class_names) == list("abcde")
    frames = torch.randint(0, 256, (3, 4, 18), dtype=torch.uint8)
    num_frames = torch.tensor([4, 1, 2])
    assert torch.equal(model.eval()(frames, num_frames), again(frames, num_frames))
    assert all(p.requires_grad for p in again.parameters())
    models.save(again, tmp_path / "c")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / "b" / name).read_bytes()


def test_normalization_travels_with_the_weights(tmp_path: Path) -> None:
    eigenvalues = torch.linspace(3, 0.1, 20).reshape(20, 1)
    model = make(normalization="unwhiten", eigenvalues=eigenvalues)
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.normalization.convention == "unwhiten"
    torch.testing.assert_close(again.normalization.eigenvalues, eigenvalues.flatten()[:12])
    assert_same(model, again)
    assert again.config == model.config
    models.save(make(normalization="l2"), tmp_path)  # over the old one
    assert models.load(tmp_path).normalization.convention == "l2"


def test_any_head_on_any_classifier() -> None:
    for name in ("dbof-gcn", "nextvlad3"):
        small = {k: v for k, v in SMALL_PRESETS[name].items() if k not in _GCN}
        model = models.create(name, num_classes=4, head="moe", mixtures=4, **small)
        assert isinstance(model.head, MixtureOfExperts)
        assert model.head.mixtures == 4
        assert model.config.overrides["mixtures"] == 4
        model = models.create(name, num_classes=4, head="gcn", **small, **_GCN)
        assert isinstance(model.head, LabelGCN)
    assert models.create("nextvlad-small", num_classes=4).head.linear.out_features == 4


def test_options_of_heads_and_classifiers_do_not_clash() -> None:
    """Both can be overrides of one preset."""
    for name in models.names():
        for head in ("logistic", "moe", "gcn"):
            known = models.options(name, head=head)
            assert len(set(known)) == len(known), (name, head)


def test_unknown_heads_and_their_options() -> None:
    with pytest.raises(ValueError, match=r"head: expected one of gcn, logistic, moe; .*'mo'.*moe"):
        models.create("dbof", num_classes=2, head="mo")
    with pytest.raises(ValueError, match=r"head: .* unknown head 3"):
        models.create("dbof", num_classes=2, head=3)
    with pytest.raises(
        ValueError, match=r"overrides: .*, mixtures; .* 'mixture' \(did you mean 'mi"
    ):
        models.create("dbof", num_classes=2, mixture=3)
    with pytest.raises(ValueError, match=r"overrides: .* unknown argument of dbof 'node_size'"):
        models.create("dbof", num_classes=2, node_size=3)
    with pytest.raises(ValueError, match=r"overrides: expected numbers, .* Generator is not JSON"):
        models.create("dbof", num_classes=2, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"mixtures: expected at least 1, found 0"):
        models.create("dbof", num_classes=2, mixtures=0)


@pytest.mark.parametrize("train_graph", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("train_nodes", [False, True])
def test_a_graph_round_trips(
    tmp_path: Path, train_graph: bool, sparse: bool, train_nodes: bool
) -> None:
    """The graph and the node features are arguments; the file keeps their trained values."""
    says = LabelCorrelation(
        torch.tensor([0, 2, 2, 3, 3]), torch.tensor([1, 3, 0]), torch.tensor([0.5, 0.75, 1.0])
    )
    small = {k: v for k, v in SMALL_PRESETS["dbof-gcn"].items() if k != "node_size"}
    model = models.create(
        "dbof-gcn",
        num_classes=4,
        correlation=says if sparse else says.dense(),
        node_features=np.random.default_rng(0).standard_normal((4, 5)),
        train_graph=train_graph,
        train_nodes=train_nodes,
        **small,
    )
    shapes = {"offsets": [5], "columns": [3], "values": [3]} if sparse else [4, 4]
    assert model.config.tensors == {"correlation": shapes, "node_features": [4, 5]}
    frames, num_frames = make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(frames, num_frames).square().sum().backward()
    optimizer.step()
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert_same(model, again)
    assert again.config == model.config
    trained = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in again.named_parameters()] == trained
    assert ("head.graph.weight" in trained, "head.nodes" in trained) == (train_graph, train_nodes)
    assert torch.equal(model.eval()(frames, num_frames), again(frames, num_frames))
    models.save(again, tmp_path / "again")
    for file in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    models.save(make(), tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    models.load(tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_a_compiled_model_is_saved_as_the_original(tmp_path: Path) -> None:
    model = trained(make())
    models.save(torch.compile(model, backend="eager"), tmp_path)
    assert_same(models.load(tmp_path), model)


def test_class_names_and_config_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class_names: expected 5 names, found 1"):
        models.save(make(), tmp_path, class_names=["a"])
    with pytest.raises(ValueError, match=r"model: expected .* found Linear without a config"):
        models.save(nn.Linear(1, 1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = trained(make())
    models.save(old, tmp_path)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"disk full"):
        models.save(make(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert_same(models.load(tmp_path), old)


@pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")
def test_files_have_the_usual_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        models.save(make(), tmp_path)
    finally:
        os.umask(old)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def edit(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def replace_weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = load_file(path)
        change(state)
        description = json.loads((folder / "model.json").read_text())
        config = models.ModelConfig(**{k: v for k, v in description.items() if k[:6] != "format"})
        description.pop("class_names", None)
        description["sha256"] = files._digest(config, state)
        save_file(state, path, metadata={"pyseg": json.dumps(description, sort_keys=True)})

    return apply


def truncate(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return apply


DAMAGE = [
    (truncate("model.json"), r"model\.json: expected JSON, found"),
    (truncate("model.safetensors"), r"model\.safetensors: expected a safetensors file, found"),
    (
        lambda folder: (folder / "model.json").write_text("[1]"),
        r"model\.json: expected a JSON object, found list",
    ),
    (
        lambda folder: (folder / "model.json").write_bytes(b"\xff"),
        r"model\.json: expected JSON, found",
    ),
    (edit(format_version=1), r"model\.json: expected format_version 2, found 1"),
    (edit(num_classes="5"), r"model\.json: num_classes: expected int, found '5'"),
    (edit(name=None), r"model\.json: name: expected str, found None"),
    (edit(level="clip"), r"model\.json: level: expected \"frame\" or \"video\", found 'clip'"),
    (edit(class_names=["a"]), r"model\.json: class_names: expected 5 names, found 1"),
    (
        edit(num_classes=6),
        r"model\.safetensors: expected .*\"num_classes\": 6.*found .*\"num_classes\": 5",
    ),
    (
        edit(overrides={"normalization": "l2"}),
        r"model\.safetensors: expected .*\"normalization\": \"l2\".*; found",
    ),
    (
        replace_weights(lambda state: state.pop("hidden.weight")),
        r"model\.safetensors: .* missing: hidden\.weight; unexpected: none",
    ),
    (
        replace_weights(lambda state: state.update(more=torch.zeros(1))),
        r"model\.safetensors: .* missing: none; unexpected: more",
    ),
    (
        replace_weights(lambda state: state.update({"head.linear.bias": torch.zeros(6)})),
        r"model\.safetensors: head\.linear\.bias: expected shape \(5,\), found \(6,\)",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    models.save(make(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    models.save(make(), tmp_path, class_names=[f"class {i}" for i in range(5)])
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for at in [*range(0, len(content), len(content) // 20), *range(0, 4000, 201)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(DataError, match=r"model\.(safetensors|json): "):
            models.load(tmp_path)
    path.write_bytes(content)
    models.load(tmp_path)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace("class 3", "class 7"))
    with pytest.raises(DataError, match="one of the files is damaged"):
        models.load(tmp_path)


def test_a_preset_of_another_version(tmp_path: Path) -> None:
    """Both files agree on a model that this version does not have."""
    models.save(make(), tmp_path)
    edit(name="nextvlad9")(tmp_path)
    replace_weights(lambda state: None)(tmp_path)
    with pytest.raises(ValueError, match=r"model\.json: name: .*unknown preset 'nextvlad9'"):
        models.load(tmp_path)


def test_a_correlation_of_another_version(tmp_path: Path) -> None:
    models.save(make(), tmp_path)
    edit(tensors={"correlation": {"offsets": [6], "indices": [2]}})(tmp_path)
    replace_weights(lambda state: None)(tmp_path)
    with pytest.raises(ValueError, match=r"model\.json: tensors: expected .*, found offsets, ind"):
        models.load(tmp_path)


def test_foreign_weights(tmp_path: Path) -> None:
    models.save(make(), tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match=r"found no description: damaged, or not of pyseg"):
        models.load(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    models.save(make(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        models.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("nextvlad-small", {}),
        ("nextvlad1", {"head": "moe", "mixtures": 3}),
        ("nextvlad1-gcn", {"correlation": torch.full((4, 4), 0.5), "bias": True}),
        ("nextvlad1-gcn", {"node_features": torch.randn(4, 5), "train_nodes": False}),
        ("nextvlad1-gcn", {"adjacency": "identity", "linear_share": 0.5}),
        ("dbof", {}),
        ("paper-mixture", {}),
        ("3nextvlad-diff", {"head": "moe"}),
    ],
)
def test_a_model_of_some_classes(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """It predicts as the whole model does for them; a label graph is restricted to them."""
    if "node_features" in overrides:
        overrides = {**overrides, "gcn_size": 16}
    model = make_preset(name, **overrides)
    frames, num_frames = make_batch()
    model(frames, num_frames)  # moves the statistics
    model.eval()
    model.config = dataclasses.replace(model.config, class_names=list("abcd"))
    cut = models.select_classes(model, [3, 1])
    assert (cut.num_classes, list(cut.config.class_names)) == (2, ["d", "b"])
    assert not cut.training
    expected = model(frames, num_frames)[:, [3, 1]]
    if "gcn" not in name:
        torch.testing.assert_close(cut(frames, num_frames), expected)
    models.save(cut, tmp_path)
    again = models.load(tmp_path)
    assert_same(cut, again)
    assert torch.equal(again(frames, num_frames), cut(frames, num_frames))
    cut.train()(frames, num_frames).sum().backward()
    assert torch.equal(model(frames, num_frames)[:, [3, 1]], expected)  # nothing is shared


def test_a_label_graph_of_some_classes() -> None:
    says = LabelCorrelation(torch.tensor([0, 2, 2, 3, 3]), torch.tensor([1, 2, 3]), torch.ones(3))
    model = make_preset("nextvlad1-gcn", correlation=says)
    cut = models.select_classes(model, [2, 0])
    whole = model.head.graph.weight
    assert torch.equal(cut.head.graph.weight, whole[[2, 0]][:, [2, 0]])
    assert torch.equal(cut.head.nodes, model.head.nodes[[2, 0]])
    factors = model.head.learning_rate_factors()
    assert cut.head.learning_rate_factors() == factors  # it may be trained further
    assert min(factors.values()) < 1
    frozen = make_preset("nextvlad1-gcn", correlation=says, train_graph=False)
    with pytest.raises(ValueError, match="classes: expected all, as the label graph is sparse"):
        models.select_classes(frozen, [0])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "classes: expected different classes, at least one"),
        ([1, 1], "classes: expected different classes"),
        ([0, 5], r"classes: expected 0\.\.4, found 5"),
        ([-1], r"classes: expected 0\.\.4, found -1"),
    ],
)
def test_classes_that_cannot_be_selected(classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.select_classes(make(), classes)
