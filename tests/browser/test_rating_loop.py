"""The way from videos to a model: rated in a browser, then learned from.

It also writes the pictures of the documentation, on more films and with more answers:

    PYSEG_PICTURES=docs/_static pytest -n 0 tests/browser/test_rating_loop.py
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyseg.data import open_collection
from pyseg.extract import ExtractConfig, extract

pytest.importorskip("av")
pytest.importorskip("PIL")

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
PICTURES = os.environ.get("PYSEG_PICTURES")
CLASS = "document.querySelector('.question .class').textContent"
FILMS, ANSWERS = (12, 100) if PICTURES else (3, 20)


@contextlib.contextmanager
def command(*words: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs a command of pyseg that waits; interrupts it at the end."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 0


@pytest.mark.usefixtures("ctrl_c")
def test_films_are_rated_in_a_browser(
    view: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from own_videos import CLASSES, SEGMENT, make_film, shows

    films = tmp_path / "films"
    films.mkdir()
    shown = {f"film-{n}": make_film(films / f"film-{n}.mp4", n) for n in range(FILMS)}
    extraction = ExtractConfig(
        videos=[str(films)],
        backbone="own_videos:backbone",
        out=str(tmp_path / "features"),
        segment_seconds=SEGMENT,
        processes=0,
    )
    extract(extraction)
    options = ["--data", "features", "--classes", ",".join(CLASSES), "--rater", "ann"]
    rated: set[tuple[str, str, str]] = set()
    with command("pyseg.rate", *options, "--no_browser", folder=tmp_path) as running:
        assert running.stdout is not None
        address = next(filter(None, (re.search(r"http://\S+", s) for s in running.stdout)))[0]
        view.open(address)
        place = "document.querySelector('.question .where').textContent"
        for _ in range(ANSWERS):
            view.wait("document.querySelector('.pictures > :not(.off)')?.currentTime > 0")
            [name] = view.texts(".question .class")
            film, begin = re.match(r"(film-\d+), 0:(\d\d) – ", view.run(place)).groups()
            assert (film, begin, name) not in rated
            rated.add((film, begin, name))
            before = view.run(f"{place} + {CLASS}")
            view.run("new Promise((done) => setTimeout(done, 170))")  # not before a person could
            view.press("y" if shows(shown[film], name, int(begin)) else "n")
            view.wait(f"{place} + {CLASS} !== {before!r}")
            view.wait("document.querySelector('.saved').dataset.state === 'saved'")
        for dark in (False, True) if PICTURES else ():
            view.open(address, dark=dark)
            view.wait("!document.querySelector('.learning').checkVisibility()")
            view.wait("document.querySelector('.pictures > :not(.off)').currentTime > 1")
            path = Path(str(PICTURES), f"rating-{'dark' if dark else 'light'}.png").absolute()
            view.browser.save_screenshot(str(path))
            assert path.stat().st_size < 150_000
        (tmp_path / "empty.html").touch()
        view.open(tmp_path / "empty.html")  # the page would report that the command has ended
    with open(tmp_path / "ratings.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rated) == ANSWERS
    assert sum(line["reason"] == "random" for line in lines) == ANSWERS // 5
    for line in lines:
        assert line["rater"] == "ann"
        assert int(line["score"]) == shows(shown[line["video"]], line["class"], int(line["start"]))
    extraction.ratings = str(tmp_path / "ratings.csv")
    assert sum(extract(extraction).report.rated.values()) == ANSWERS
    segments = open_collection(tmp_path / "features").segments("all")
    assert sum(len(segment.classes) for segment in segments) == ANSWERS
