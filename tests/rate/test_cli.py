"""The command, with the page and without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyseg import __main__ as door
from pyseg.errors import ArgumentError, DataError, MissingFileError, UserError
from pyseg.rate import cli
from pyseg.rate.answers import AnswerFile
from pyseg.rate.config import RateConfig
from pyseg.rate.session import Session
from pyseg.rate.views import QuestionView

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Files named as the first 20 videos of the clips, and one more; the page is not opened."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(20):
        (folder / f"v{number:02d}.mp4").touch()
    (folder / "holiday.mp4").touch()
    return folder


Serve = Callable[..., None]


def rating(count: int, verdict: Callable[[QuestionView], str]) -> tuple[Serve, list[QuestionView]]:
    """Returns a stand-in for the page, whose rater answers some questions, and these."""
    asked: list[QuestionView] = []

    def serve(session: Session, media: Any, *, port: int, open_browser: bool) -> None:
        assert (port, open_browser) == (0, False)
        for _ in range(count):
            if (view := session.question()) is None:
                break
            assert view.video in media
            session.answer(view.id, verdict(view))  # type: ignore[arg-type]
            asked.append(view)

    return serve, asked


def shows(view: QuestionView) -> str:
    """The truth about the clips: a class is shown in one half of every third video."""
    video, label = int(view.video[1:]), ["Dog", "Cat", "Car", "Snow", "Caar"].index(view.name)
    half = video // 3 % 2
    return "yes" if label == video % 3 and (view.start >= 6) == bool(half) else "no"


def test_questions_are_asked_and_summed_up(
    clips: Path, films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(films.parent)
    serve, asked = rating(40, lambda view: "skip" if view.name == "Cat" else shows(view))
    monkeypatch.setattr(cli, "serve", serve)
    words = ["--data", str(clips), "--videos", "films", "--rater", "ann", "--no_browser"]
    cli.main(words)
    output = capsys.readouterr().out
    assert len(asked) == 40
    assert "4 of 24 videos of" in output
    assert "have no file and no link, and are left out" in output
    assert "holiday" in output
    assert "80 segments of 20 videos, 3 classes, 80 ratings of the data, 0 lines in" in output
    assert "| class | yes | no | skipped |" in output
    skipped = sum(view.name == "Cat" for view in asked)
    assert f"| Cat | 0 | 0 | {skipped} |" in output
    assert "answers: ratings.csv; the same command goes on" in output
    assert {row.rater for row in AnswerFile("ratings.csv", "bob").rows()} == {"ann"}
    # Those of the data are not asked: of each video, one class was rated.
    assert not any(shows(view) == "yes" for view in asked)
    cli.main([*words, "--classes", "Dog,Snow,Caar"])
    output = capsys.readouterr().out
    assert "classes that are new: Snow, Caar (did you mean Car?)" in output
    assert {view.name for view in asked[40:]} == {"Dog", "Snow", "Caar"}
    assert not {(v.video, v.start, v.name) for v in asked[:40]} & {
        (v.video, v.start, v.name) for v in asked[40:]
    }


def test_a_second_look_finds_slips(
    clips: Path, films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(films.parent)
    file, rng = AnswerFile("ratings.csv", "ann"), np.random.default_rng(0)
    wrong = set()
    for number in rng.permutation(80).tolist():
        video, start = f"v{number // 4:02d}", number % 4 * 3.0
        for name in ("Dog", "Car"):
            view = QuestionView("", video, start, start + 3, name, "")
            right = shows(view) == "yes"
            slip = rng.random() < 0.05
            if slip:
                wrong.add((video, start, name))
            file.add(video, start, start + 3, name, float(right != slip), "change")
    serve, asked = rating(100, shows)
    monkeypatch.setattr(cli, "serve", serve)
    words = ["--data", str(clips), "--videos", "films/*", "--rater", "ann", "--no_browser"]
    cli.main([*words, "--check"])
    output = capsys.readouterr().out
    assert f"the {len(asked)} of 160 answers that the model doubts most:" in output
    assert "| video | start | end | class | answer | probability |" in output
    assert 5 <= len(asked) <= 16
    found = {(view.video, view.start, view.name) for view in asked} & wrong
    assert len(found) >= len(wrong) / 2
    assert all(view.second_look for view in asked)
    assert f"{len(found)} of {len(asked)} answers changed at the second look" in output
    rows = AnswerFile("ratings.csv", "ann").rows()
    assert len(rows) == 160 + len(asked)
    assert {row.reason for row in rows[160:]} == {"check"}
    table = [line.split("|")[1].strip() for line in output.splitlines() if line.startswith("| v")]
    assert table[1:] == [view.video for view in asked]  # in this order, after the head
    with pytest.raises(UserError, match=r"--check: expected at least 20 answers of bob in rat"):
        cli.main([*words, "--check", "--rater", "bob"])
    assert capsys.readouterr().out == ""


def test_what_cannot_be_asked_is_refused(
    clips: Path, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(films.parent)
    Path("empty").mkdir()
    data = ["--data", str(clips)]
    videos = ["--videos", "films"]
    cases: list[tuple[list[str], type[Exception], str]] = [
        (videos, UserError, "expected --data"),
        (data, UserError, "--videos: expected the videos of .*, or --links .* found neither"),
        (
            [*data, "--videos", "none/*.mp4"],
            MissingFileError,
            r"^--videos none/\*.mp4: no file matches$",
        ),
        ([*data, "--videos", "empty"], MissingFileError, "^--videos empty: no file in this folder"),
        ([*data, "--links", "no.csv"], MissingFileError, r"^--links no\.csv: no such file$"),
        ([*data, "--links", "films"], UserError, "^--links films: expected a file, found a folder"),
        (["--data", "films", *videos], MissingFileError, "run python -m pyseg.extract --videos fi"),
        ([*data, *videos, "--every", "0"], UserError, "--every: expected at least 1, found 0"),
        ([*data, *videos, "--gain", "2"], UserError, "--gain: expected a number in"),
        ([*data, *videos, "--port", "99999"], UserError, "--port: expected at most 65,535"),
        ([*data, *videos, "--strategy", "psychic"], UserError, "--strategy: .*psychic"),
        ([*data, *videos, "--model", "oracle"], UserError, "oracle"),
        ([*data, *videos, "--rater", "a\nb"], UserError, "--rater"),
        ([*data, *videos, "--classes", "["], UserError, "--classes: expected names"),
        ([*data, *videos, "--classes", ","], UserError, "--classes: expected names .* found ','"),
        ([*data, *videos, "--out", "none/r.csv"], UserError, "--out none/r.csv: expected a folder"),
        ([*data, *videos, "--out", "films"], UserError, "--out films: expected a file"),
        ([*data, *videos, "--run", "films"], UserError, "films is not a run folder"),
        (["--data", "none.d", *videos], MissingFileError, "none.d"),
    ]
    for words, kind, message in cases:
        with pytest.raises(kind, match=message):
            cli.main(words)
    assert not Path("ratings.csv").exists()
    Path("ratings.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"ratings\.csv, line 1: expected"):
        cli.main([*data, *videos])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        UserError, match=r"^--out ratings\.csv: expected a file that you may read a"
    ):
        cli.main([*data, *videos])
    with pytest.raises(
        UserError, match=r"^--links ratings\.csv: expected a file that you may read"
    ):
        cli.main([*data, "--links", "ratings.csv"])
    with pytest.raises(ArgumentError, match="rater: "):
        RateConfig(str(clips), rater=" ")


def test_links_instead_of_files(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("links.csv").write_text("video,url\nv03,https://example.org/a.mp4\n")
    serve, asked = rating(100, shows)
    monkeypatch.setattr(cli, "serve", serve)
    cli.main(["--data", str(clips), "--links", "links.csv", "--no_browser"])
    assert {view.video for view in asked} == {"v03"}
    assert len(asked) == 8  # 4 segments, 2 classes that are not rated
    assert "23 of 24 videos of" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--out links\.csv: expected another file"):
        cli.main(["--data", str(clips), "--links", "links.csv", "--out", "links.csv"])


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_ends_cleanly(clips: Path, films: Path) -> None:
    """The real command: it prints an address, stores an answer, and says what comes next."""
    words = ["--data", str(clips), "--videos", "films", "--classes", "Dog", "--no_browser"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pyseg", "rate", *words],
        cwd=films.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        url = next(line for line in lines if "http://127.0.0.1:" in line).split()[-1]
        assert next(lines).strip() == "every answer is stored at once; Ctrl-C ends"
        with urllib.request.urlopen(url) as page:
            assert page.status == 200
        process.send_signal(signal.SIGINT)
        rest = "".join(lines)
        assert process.wait(60) == 0, rest
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert "answers: ratings.csv; the same command goes on; to learn from them:" in rest
    assert f"python -m pyseg.data import --features {clips} --ratings ratings.csv --out" in rest
    assert "Traceback" not in rest


def test_it_is_a_command() -> None:
    assert "rate" in door.COMMANDS
