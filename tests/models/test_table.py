"""The table of presets: its counts against the formulas and against PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from pyseg import _ext, models
from pyseg.errors import UserError
from pyseg.models import table
from pyseg.nn import gru, nextvlad
from pyseg.ops import frame_pool_reference, gru_recurrence_reference
from pyseg.ops.frames import dequantize

SMALL = {"feature_sizes": (32, 16), "hidden_size": 16, "reduction": 4}
MODELS = {
    "nextvlad1": SMALL | {"clusters": 8, "groups": 4},
    "attention-gru": SMALL | {"gru_size": 8, "gru_layers": 2, "attention_size": 4},
    "paper-mixture": SMALL | {"clusters": 8, "groups": 4, "gru_size": 8, "attention_size": 4},
}


@pytest.mark.parametrize("length", [5, 300])
@pytest.mark.parametrize("name", MODELS)
def test_fused_operators_count_like_plain_pytorch(
    name: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.create(name, num_classes=7, **MODELS[name]).eval()
    fused = table.count_operations(model, length)

    def floats(model, batch, length):
        return dequantize(frames(model, batch, length), None, torch.float32)

    frames = table._frames
    monkeypatch.setattr(table, "_frames", floats)
    monkeypatch.setattr(table, "_formulas", dict)
    monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
    monkeypatch.setattr(gru, "gru_recurrence", gru_recurrence_reference)
    monkeypatch.setattr(nextvlad, "frame_pool", frame_pool_reference)
    assert fused == table.count_operations(model, length) > 0


@pytest.mark.parametrize("length", [5, 300])
def test_count_is_that_of_the_layers(length: int) -> None:
    model = models.create("nextvlad1", num_classes=7, **MODELS["nextvlad1"]).eval()
    layers = [branch.operations(1, length, formed=True) for branch in model.branches]
    expected = sum(min(counts.values()) for counts in layers)
    aggregate = sum(branch.out_features for branch in model.branches)
    expected += 2 * (aggregate * 16 + 2 * 16 * 4 + 16 * 7)
    found = table.count_operations(model, length)
    assert expected < found < 1.1 * expected  # `operations` leaves the attention out


def test_table_of_a_preset() -> None:
    config = table.TableConfig(num_classes=10, presets=["nextvlad-small"])
    heading, _, row, _, counted, timed = table.table(config).splitlines()
    columns = dict(
        zip(
            (cell.strip() for cell in heading.strip("|").split("|")),
            (cell.strip() for cell in row.strip("|").split("|")),
            strict=True,
        )
    )
    model = models.create("nextvlad-small", num_classes=10).eval()
    assert columns["preset"] == "`nextvlad-small`"
    assert columns["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    for name, length in (("video", 300), ("segment", 5)):
        count = table.count_operations(model, length) / 1e9
        assert float(columns[f"GFLOP a {name}"]) == pytest.approx(count, rel=0.005)
        assert float(columns[f"ms a {name}"]) > 0
    assert counted.startswith("10 classes; a video has 300 frames, a segment 5.")
    assert "medians" in timed


def test_numbers_have_three_digits() -> None:
    found = [table._rounded(value) for value in (0.0, 0.00123456, 0.5, 9.999, 12.34, 1234.5)]
    assert found == ["0", "0.00123", "0.500", "10.00", "12.3", "1230"]


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    presets = '["nextvlad-small", "attention-gru"]'
    options = ["--timing", "false", "--num-classes", "3", "--presets", presets]
    table.main(options)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == "| preset | parameters | GFLOP a video | GFLOP a segment |"
    assert lines[2].startswith("| `nextvlad-small` | ")
    assert lines[3].startswith("| `attention-gru` | ")
    assert "Times" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_classes", "0"], "num_classes: expected at least 1, found 0"),
        (["--presets", '["nextvlad"]'], "--presets: .*unknown preset 'nextvlad'"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table.main(arguments)
