"""The command, and the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyseg.errors import UserError
from pyseg.reproduce import ModelSpec, ReproduceConfig, main, reproduce
from pyseg.reproduce.experiments import GeneratedSample
from pyseg.reproduce.output import can_draw


def test_command(tiny: ModelSpec, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    options = ["--data", "sample", "--table", "3", "--quick", "true", "--out", str(out)]
    main(options)
    printed = capsys.readouterr().out
    assert "3: plain: map_rated 0." in printed
    assert "loss" not in printed  # what training says is in the runs' logs
    text = (out / "tables.md").read_text()
    assert "2 steps of 8; 1 seed," in text
    assert "## Table 3: label reweighting" in text
    assert "| m = 2.5 | 0.783 | 0." in text
    found = json.loads((out / "tables.json").read_text())
    assert found["tables"][0]["rows"][0]["name"] == "plain"
    assert sorted(found["tables"][0]["rows"][0]["map_rated"]) == [
        "difference", "mean", "standard_error", "standard_error_over_classes", "values",
    ]  # fmt: skip
    if can_draw():
        assert (out / "table-3.png").read_bytes().startswith(b"\x89PNG")
    main(options)
    assert (out / "tables.md").read_text() == text


def test_what_cannot_be_done_is_told(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="seeds: expected at least 1, found 0"):
        ReproduceConfig(seeds=0)
    monkeypatch.setattr(GeneratedSample, "architectures", {})
    known = "expected one of 3, 4, 5, gcn, best, steps, segments, mixtures, rating, which sample"
    for table in ("2", "literature", "curve"):
        with pytest.raises(UserError, match=f"--table {table}: {known}"):
            reproduce(ReproduceConfig(table=table, out=str(tmp_path)))  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file: expected a folder, found a file"):
        reproduce(ReproduceConfig(out=str(tmp_path / "file")))
    (tmp_path / "file").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^--folder yt8m/labelsets\.csv\.gz: no such file"):
        reproduce(ReproduceConfig(data="yt8m"))
    assert list(tmp_path.iterdir()) == []
