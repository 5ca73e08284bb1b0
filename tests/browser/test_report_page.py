"""The page of the report in a browser: charts are hovered, zoomed and searched, tables sorted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")

from pyseg.report import charts
from pyseg.report.charts import ClassBar, Series
from pyseg.report.page import Figure, PageTable, Section, render
from pyseg.timeline import Timeline
from pyseg.timeline.page import data

NAMES = ["cat", "<b>dog</b>", "mouse"]
TIP = "tip.innerText.split('\\n')"


@pytest.fixture
def page(view, tmp_path: Path):
    steps = np.arange(5) * 10
    loss = [Series(run, "ab"[run], steps, 5.0 - steps / (10 + run)) for run in (0, 1)]
    points = [Series(0, "a", np.array([1, 10, 100]), np.array([0.2, 0.5, 0.9]), NAMES)]
    bars = [("best", [ClassBar(NAMES[1], 10, [0.5, 0.25], 0.1)])]
    times = np.arange(4)
    strips = data(Timeline("v", times, times + 1, [[0.1], [0.9], [0.8], [0.1]], ["cat"]), [])
    rows = [("cat", "1", "0.2"), ("<b>dog</b>", "1,000", "0.5"), ("mouse", "100", "0.9")]
    table = PageTable(("name", "positives", "AP"), rows, (1, 2), (), "Classes", True, True)
    section = Section(
        "All charts",
        "",
        [table],
        [
            charts.curves("loss", "Loss", "step", loss),
            charts.points("AP", "AP", ("positives", "AP"), points, log=True),
            charts.class_bars("bars", "Bars", bars, [(0, "a"), (1, "b")]),
            Figure("strips", "v", "Scores of v", strips),
        ],
    )
    path = tmp_path / "r.html"
    path.write_text(render("Report <b>", "", [section], ""))
    view.open(path)
    view.wait("document.querySelectorAll('.plot svg text').length > 8")
    return view


def test_table_is_sorted_and_searched(page) -> None:
    cells = ".sortable tbody td:first-child"
    page.click(".sortable th:nth-child(2) button")
    assert page.texts(cells) == ["<b>dog</b>", "mouse", "cat"]
    page.click(".sortable th:nth-child(2) button")
    assert page.texts(cells) == ["cat", "mouse", "<b>dog</b>"]
    assert page.run("document.querySelector('.sortable th:nth-child(2)').ariaSort") == "ascending"
    page.click(".sortable th:nth-child(1) button")
    assert page.texts(cells) == ["<b>dog</b>", "cat", "mouse"]
    page.run("document.querySelector('input[data-table]').focus()")
    page.press("DOG")
    assert page.texts(cells) == ["<b>dog</b>"]
    assert page.texts("input[data-table] + span") == ["1 of 3"]
    assert page.run("location.hash") == ""
    page.click(".contents a")
    assert page.run("location.hash") == "#all-charts"


def test_curves_are_hovered_zoomed_and_hidden(page) -> None:
    chart = "#figure-1-1"
    page.pointer(f"{chart} svg", 0.5)
    page.wait("!tip.hidden")
    assert page.run(TIP) == ["step 20", "a: 3", "b: 3.182"]
    page.press("")
    page.pointer(f"{chart} svg", 0.3, kind="mousePressed")
    page.pointer(f"{chart} svg", 0.7)
    page.pointer(f"{chart} svg", 0.7, kind="mouseReleased")
    assert page.run(f"document.querySelector('{chart}').dataset.zoomed") == "true"
    assert "0" not in page.texts(f"{chart} svg text")  # the step 0
    page.run(f"document.querySelector('{chart} svg').focus()")
    page.press("\ue00c")  # escape
    assert "0" in page.texts(f"{chart} svg text")
    page.press("\ue014\ue014")  # right, right
    assert page.run(TIP)[0] == "step 10"
    page.click(f"{chart} .legend button")
    page.pointer(f"{chart} svg", 0.5)
    assert page.run(TIP) == ["step 20", "b: 3.182"]


def test_points_and_bars_say_their_class(page) -> None:
    chart = "#figure-1-2"
    x, y, width, height = page.run(
        f"""(() => {{ const b = document.querySelector('{chart} svg').getBoundingClientRect();
        const p = document.querySelectorAll('{chart} svg g path')[1].getAttribute('d');
        const place = p.split('M')[2].split('h')[0].split(' ').map(Number);
        return [...place, b.width, b.height]; }})()"""
    )
    page.pointer(f"{chart} svg", x / width, y / height)
    page.wait("!tip.hidden")
    assert page.run(TIP) == ["<b>dog</b>", "AP: 0.5", "positives: 10"]
    page.run(f"document.querySelector('{chart} input').focus()")
    page.press("mou")
    assert page.texts(f"{chart} .note") == ["mouse"]
    page.pointer("#figure-1-3 .track", 0.5)
    assert page.run(TIP) == ["<b>dog</b>", "a: 0.500", "b: 0.250", "positives: 10", "chance: 0.100"]


def test_strips_colors_and_phones(page) -> None:
    page.pointer("#figure-1-4 .strip-row canvas", 0.41)
    page.wait("!tip.hidden")
    assert page.run(TIP) == ["0:01.6", "cat: 0.90"]
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.run(color)
    page.click("button.theme")
    assert page.run(color) != light
    page.check_fits()
    assert page.texts("h1") == ["Report <b>"]
