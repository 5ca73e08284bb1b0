"""The table of answers needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pyseg.errors import DataError
from pyseg.reproduce import ReproduceConfig, main, rating, reproduce
from pyseg.reproduce.asking import BUDGETS, Asking
from pyseg.reproduce.output import can_draw
from pyseg.reproduce.rating import Curve, describe_curves


def curve(name: str, slope: float, strategy: str = "random") -> Curve:
    values = np.array([[slope * budget, (slope + 1e-5) * budget] for budget in BUDGETS]).T
    return Curve(Asking(name, strategy), values)


def test_needed_answers() -> None:
    random, change = curve("random", 0.002), curve("change", 0.005, "change")
    assert change.needed(0.2).mean == pytest.approx(39.96, abs=0.01)
    assert change.needed(0.0001).mean == BUDGETS[0]
    assert change.needed(0.9).mean == np.inf
    lines = describe_curves([random, change, curve("slow", 0.001, "slow")]).splitlines()
    assert lines[0].split("|")[2].strip() == "10"
    assert lines[3].startswith("| change |")
    assert lines[3].rstrip(" |").endswith("40 ± 0")
    assert "over 100" in lines[4]


def test_command(tmp_path: Path, monkeypatch, capsys) -> None:
    calls = []

    def simulated(truth: object, asking: Asking, seed: int) -> list[float]:
        calls.append((asking.name, seed))
        return [0.001 * budget * (1 + seed) for budget in BUDGETS]

    monkeypatch.setattr(rating, "simulate", simulated)
    monkeypatch.setattr(rating, "read_truth", lambda experiment: object())
    out = tmp_path / "out"
    options = ["--data", "sample", "--table", "rating", "--seeds", "2", "--out", str(out)]
    main(options)
    assert "rating: uncertain: 0.150 ± 0.050" in capsys.readouterr().out
    text = (out / "rating.md").read_text()
    assert "# Answers needed, on sample" in text
    assert "| change, the default | 0.015 ± 0.005 |" in text
    found = json.loads((out / "rating.json").read_text())
    assert len(found["rows"]) == len(rating.ROWS)
    assert found["rows"][2]["map"][1][-1] == pytest.approx(0.2)
    if can_draw():
        assert (out / "rating.png").read_bytes().startswith(b"\x89PNG")
    assert len(calls) == 2 * len(rating.ROWS)
    main(options)
    assert len(calls) == 2 * len(rating.ROWS)  # results are read
    next((out / "runs").glob("rating-*.json")).write_text("[1]")
    with pytest.raises(DataError, match="expected 20 numbers: delete this file"):
        reproduce(ReproduceConfig(data="sample", table="rating", seeds=2, out=str(out)))
