"""Presets, and saving and loading: bit for bit, or a clear error (pitfall 4)."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyseg import models

SMALL = {"feature_sizes": (12, 6), "clusters": 6, "groups": 2, "hidden_size": 16}


def make(num_classes: int = 5, **overrides: object) -> nn.Module:
    return models.create("nextvlad-small", num_classes=num_classes, **(SMALL | overrides))


def trained(model: nn.Module) -> nn.Module:
    """A step in training mode, so that running statistics are not those of a fresh model."""
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


@pytest.mark.parametrize("name", [name for name in models.names() if name[:4] == "next"])
def test_every_preset_runs(name: str) -> None:
    overrides = {} if name == "nextvlad-small" else {"clusters": 8, "hidden_size": 32}
    model = models.create(name, num_classes=3, **overrides)
    frames = torch.randint(0, 256, (2, 5, 1152), dtype=torch.uint8)
    logits = model(frames, torch.tensor([5, 2]))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert model.config == models.ModelConfig(name, 3, overrides)


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


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    models.save(make(), tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    models.load(tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_a_compiled_model_is_saved_as_the_model_it_is(tmp_path: Path) -> None:
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
        description.pop("class_names", None)
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
    (edit(format_version=2), r"model\.json: expected format_version 1, found 2"),
    (edit(num_classes="5"), r"model\.json: num_classes: expected int, found '5'"),
    (edit(name=None), r"model\.json: name: expected str, found None"),
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


def test_a_preset_of_another_version(tmp_path: Path) -> None:
    """Both files agree on something that this version cannot make."""
    models.save(make(), tmp_path)
    edit(name="nextvlad9")(tmp_path)
    replace_weights(lambda state: None)(tmp_path)
    with pytest.raises(ValueError, match=r"model\.json: name: .*unknown preset 'nextvlad9'"):
        models.load(tmp_path)


def test_weights_of_someone_else(tmp_path: Path) -> None:
    models.save(make(), tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match=r"found no description: not written by pyseg"):
        models.load(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    models.save(make(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        models.load(tmp_path)
