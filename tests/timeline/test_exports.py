"""Every export is read back by another reader than pyseg's, also with hostile class names."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pyseg.errors import ArgumentError, UserError
from pyseg.timeline import FORMATS, Event, Rating, Timeline
from pyseg.timeline.exports import stretches

NAMES = [
    "cat",
    'a, "b"; c',
    "two\nlines\r\n\nand a blank one",
    "00:00:01.000 --> 00:00:02.000",
    "<b>&amp;</b> ]]>",
    r"#;=\ [CHAPTER] \\",
    "\x00\x1b[31m\x85\ufffe",
    "日本 🎈 é",
    "cat",
    "12",
]
LABELS = [" ".join(re.sub(r"[\x00\x1b\x85\ufffe]", " ", name).split()) for name in NAMES]


def make() -> Timeline:
    """Each class is shown for two seconds, from each second on one more; windows overlap."""
    count = len(NAMES)
    starts = np.arange(count + 1) + 1 / 3
    scores = np.full((count + 1, count), 0.125)
    scores[np.arange(count), np.arange(count)] = 0.9
    scores[np.arange(count) + 1, np.arange(count)] = 0.8
    return Timeline(
        "a <video> & more",
        starts,
        starts + 1,
        scores,
        NAMES,
        numbers=range(10, 10 + count),
        ratings=[Rating(0, 5, 12, True)],
        video="films/a b.mp4",
    )


def saved(tmp_path: Path, name: str) -> Path:
    make().save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    return tmp_path / name


def expected() -> list[tuple[int, int, str]]:
    """Start and end in milliseconds, and label of every event."""
    return [(at * 1000 + 333, at * 1000 + 2333, LABELS[at]) for at in range(len(NAMES))]


def test_csv(tmp_path: Path) -> None:
    with open(saved(tmp_path, "a.csv"), newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["start", "end", "class", "peak"]
    assert [row[2] for row in rows] == NAMES
    times = [[float(start), float(end), float(peak)] for start, end, _, peak in rows]
    events = [[event.start, event.end, event.peak] for event in make().events()]
    np.testing.assert_allclose(times, events, atol=1e-6)


def test_json(tmp_path: Path) -> None:
    content = json.loads(saved(tmp_path, "a.json").read_text())
    timeline = make()
    again = Timeline(
        content["title"],
        content["starts"],
        content["ends"],
        content["scores"],
        [found["name"] for found in content["classes"]],
        [found["number"] for found in content["classes"]],
        [Rating(**rating) for rating in content["ratings"]],
        content["video"],
        content["segment_seconds"],
    )
    for name in ("title", "names", "numbers", "ratings", "video", "segment_seconds"):
        assert getattr(again, name) == getattr(timeline, name)
    np.testing.assert_array_equal(again.starts, timeline.starts)
    np.testing.assert_allclose(again.scores, timeline.scores, atol=1e-6)
    found = [
        Event(e["start"], e["end"], e["number"], e["class"], e["peak"]) for e in content["events"]
    ]
    assert found == timeline.events()


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(saved(tmp_path, "a.parquet"))
    timeline = make()
    assert table.column_names == ["start", "end", "class", "number", "score"]
    shape = timeline.scores.shape
    scores = table["score"].to_numpy().reshape(shape)
    np.testing.assert_array_equal(scores, timeline.scores)
    np.testing.assert_array_equal(table["start"].to_numpy().reshape(shape)[:, 0], timeline.starts)
    assert table["class"].to_pylist()[: shape[1]] == NAMES
    assert table["number"].to_pylist()[: shape[1]] == list(timeline.numbers)


def test_vtt(tmp_path: Path) -> None:
    webvtt = pytest.importorskip("webvtt")
    cues = list(webvtt.read(str(saved(tmp_path, "a.vtt"))))
    found = [(cue.start, cue.end, unescaped(cue.raw_text)) for cue in cues]
    assert found == [(clock(start), clock(end), text) for start, end, text in expected()]


def unescaped(text: str) -> str:
    """The text of a WebVTT cue, without its tags."""
    text = re.sub("<[^>]*>", "", text)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def clock(milliseconds: int) -> str:
    return f"00:00:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def test_srt(tmp_path: Path) -> None:
    webvtt = pytest.importorskip("webvtt")
    path = saved(tmp_path, "a.srt")
    texts = [text.replace("-->", "→") for _, _, text in expected()]
    cues = list(webvtt.from_srt(str(path)))
    assert [cue.raw_text for cue in cues] == texts
    # A strict parser: each block has a number, a line of times, and one line of text.
    blocks = path.read_text(encoding="utf-8").removesuffix("\n").split("\n\n")
    for number, (block, (start, end, _), text) in enumerate(
        zip(blocks, expected(), texts, strict=True), 1
    ):
        times = f"{clock(start)} --> {clock(end)}".replace(".", ",")
        assert block.split("\n") == [str(number), times, text]


def test_audacity(tmp_path: Path) -> None:
    lines = saved(tmp_path, "a.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    rows = [line.split("\t") for line in lines]
    found = [
        (round(float(start) * 1000), round(float(end) * 1000), text) for start, end, text in rows
    ]
    assert found == expected()


def test_elan(tmp_path: Path) -> None:
    elan = pytest.importorskip("pympi.Elan")
    document = elan.Eaf(str(saved(tmp_path, "a.eaf")))
    tiers = document.get_tier_names()
    # The second class of the name has its number, as the names of tiers are unique.
    assert list(tiers) == [*LABELS[:6], LABELS[6], LABELS[7], "cat (18)", "12"]
    found = [document.get_annotation_data_for_tier(tier) for tier in tiers]
    assert [annotations[0][:3] for annotations in found] == expected()
    assert {len(annotations) for annotations in found} == {1}
    [media] = document.media_descriptors
    assert media["MEDIA_URL"] == (Path.cwd() / "films/a b.mp4").as_uri()
    assert media["MIME_TYPE"] == "video/mp4"


@pytest.mark.parametrize("name", ["a.ffmetadata", "a.ffmeta"])
def test_chapters(tmp_path: Path, name: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(saved(tmp_path, name)), format="ffmetadata") as container:
        chapters = container.chapters()
    found = [
        (
            c["start"] * c["time_base"] * 1000,
            c["end"] * c["time_base"] * 1000,
            c["metadata"]["title"],
        )
        for c in chapters
    ]
    rows = [(333, 1333, LABELS[0])]
    rows += [
        (start, start + 1000, f"{LABELS[at]}, {LABELS[at + 1]}")
        for at, (start, _, _) in enumerate(expected()[1:])
    ]
    rows[5] = (*rows[5][:2], rows[5][2] + " ")  # ffmpeg cannot read a backslash at the end
    rows.append((10333, 11333, LABELS[-1]))
    assert found == rows


def test_picture_and_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    for name, start in (("a.png", b"\x89PNG"), ("b.HTML", b"<!DOCTYPE html>")):
        make().save(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s not in (".png", ".html")])
def test_without_any_event_or_window(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    make().save(tmp_path / f"a{suffix}", on=1.0)
    nothing = Timeline("a", [], [], np.zeros((0, 2)), ["x", "y"])
    nothing.save(tmp_path / f"b{suffix}")
    assert (tmp_path / f"b{suffix}").is_file()


def test_rounding_neither_overlaps_nor_leaves_nothing() -> None:
    """Events of a class that touch or are shorter than a millisecond."""
    bounds = [0.0, 0.0004, 0.0005, 0.0026, 1 / 3, 1 / 3 + 1e-4, 2.0]
    events = [Event(a, b, 0, "x", 1.0) for a, b in itertools.pairwise(bounds)]
    found = stretches([*events, Event(0.0, 2.0, 1, "y", 1.0)])
    of_x = found[:-1]
    assert all(start < end for start, end, *_ in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(of_x))
    assert found[-1][:2] == (0, 2000)
    assert [round(a.end - b * 1000) for a, b in zip(of_x, bounds[1:], strict=True)] <= [2] * 6


def test_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"^path: expected .* \.png, \.html, .*; found .*a\.docx$"
    ):
        make().save(tmp_path / "a.docx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"\.parquet file needs pyarrow: pip install .*\[tables\]"):
        make().save(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a table needs pandas: pip install .*\[tables\]"):
        make().to_pandas()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def fail(*_: object) -> bytes:
        raise StopError

    monkeypatch.setitem(FORMATS, ".csv", fail)
    (tmp_path / "a.csv").write_text("before")
    with pytest.raises(StopError):
        make().save(tmp_path / "a.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "before"
