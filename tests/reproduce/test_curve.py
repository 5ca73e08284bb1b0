"""Learning curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyseg.config import StageConfig
from pyseg.reproduce import Comparison, ModelSpec, curve, main
from pyseg.reproduce.curve import Point, describe_points
from pyseg.reproduce.experiments import IncompleteVideos
from pyseg.reproduce.output import can_draw

from .conftest import outcomes_of


def test_table_by_model() -> None:
    outcomes = outcomes_of([[0.1], [0.3]], [[0.1], [0.4]], [[0.2], [0.4]], [[0.5], [0.8]])
    lines = [Comparison("curve", title, [o.variant for o in outcomes], True) for title in "ab"]
    points = [Point(line, videos, outcomes) for videos in (1000, 2000) for line in lines]
    head, _, *rows = describe_points(points, "map").splitlines()
    assert head.endswith("| row 2 | row 3 | row 1, of the gap | row 2, of the gap |")
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| a", "1,000"],
        ["| a", "2,000"],
        ["| b", "1,000"],
        ["| b", "2,000"],
    ]
    assert rows[0].endswith(" | 0.300 ± 0.100 | 0.650 ± 0.150 | 10% ± 10% ± 0% | 23% ± 2% ± 0% |")


def test_command(yt8m: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(curve, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(IncompleteVideos, "finetune", StageConfig(4, 1e-2, 16))
    monkeypatch.setattr(IncompleteVideos, "model", ModelSpec("mlp", {"hidden_size": 4}))
    out = tmp_path / "out"
    options = ["--table", "curve", "--data", "yt8m", "--folder", str(yt8m), "--seeds", "2"]
    main([*options, "--out", str(out)])
    assert capsys.readouterr().out.count("curve: ") == 4
    found = json.loads((out / "curve.json").read_text())
    videos = [point["videos"] for point in found["points"]]
    assert videos[0] == videos[1] < videos[2] == videos[3]
    assert [point["model"] for point in found["points"]] == ["ridge regression", "mlp"] * 2
    assert list(found["points"][0]["map"]) == ["plain", "the paper's", "best", "complete"]
    complete = found["points"][2]["map"]["complete"]
    assert complete[0] == pytest.approx(complete[1])  # nothing about it is drawn
    assert found["points"][2]["map"]["plain"][0] <= complete[0] <= 1.0
    text = (out / "curve.md").read_text()
    assert "MAP over the complete labels of held-out videos" in text
    assert (out / "curve.png").is_file() == can_draw()
    main([*options, "--out", str(out)])  # all runs are there
    assert (out / "curve.md").read_text() == text
