"""Tables as Markdown and JSON."""

from __future__ import annotations

import json

import pytest

from pyseg.reproduce import Comparison, describe, to_json

from .conftest import outcomes_of


def test_markdown_and_json() -> None:
    outcomes = outcomes_of([[0.1], [0.3]], [[0.2], [0.4]], [[0.5], [0.8]])
    table = Comparison("best", "a title", [outcome.variant for outcome in outcomes], ceiling=True)
    assert describe(table, outcomes, ["map"]).splitlines() == [
        "## best: a title",
        "",
        "|  | map | difference | of the gap |",
        "| --- | ---: | ---: | ---: |",
        "| row 0 | 0.200 ± 0.100 |  | 0% ± 0% ± 0% |",
        "| row 1 | 0.300 ± 0.100 | +0.100 ± 0.000 ± 0.000 * | 23% ± 2% ± 0% |",
        "| row 2 | 0.650 ± 0.150 | +0.450 ± 0.050 ± 0.000 * | 100% ± 0% ± 0% |",
    ]
    found = to_json(table, outcomes, ["map"])
    assert found["rows"][1]["map"]["values"] == [0.2, 0.4]
    assert found["rows"][1]["map"]["difference"]["mean"] == pytest.approx(0.1)
    single = outcomes_of([[0.1]], [[0.2]])
    table = Comparison("3", "one seed", [outcome.variant for outcome in single])
    assert "| row 1 | 0.200 | +0.100 ± 0.000 * |" in describe(table, single, ["map"])
    json.dumps(to_json(table, single, ["map"]), allow_nan=False)
