"""Timelines: the scores of single videos over time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pyseg import models, predict
from pyseg.data import (
    FrameSchema,
    encode_frames,
    read_frames,
    register_source,
    write_records,
)
from pyseg.submission import read_submission


def test_timeline(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    for name in ("t.png", "t.html"):
        path = tmp_path / name
        options = ["--video", "1e1", "--timeline", str(path), "--timeline-classes", "2"]
        predict.main(["--run", str(run), *options])
        printed = capsys.readouterr().out.splitlines()
        assert printed[-1] == f"timeline: {path}"
        assert len(printed) == 3
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "t.html").read_text()
    assert "<title>1e1</title>" in page
    [record] = [r for r in read_frames(data / "validate1.tfrecord") if r.id == "1e1"]
    shown = len(re.findall("<td>yes</td>|<td>no</td>", page))
    assert shown == len(record.ratings.starts) > 0


def test_exports_of_a_video_of_records(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "a.json"
    predict.main(["--run", str(run), "--video", "1e1", "--export", str(out), "--on", "0.3"])
    assert capsys.readouterr().out.splitlines()[-1] == f"export: {out}"
    content = json.loads(out.read_text())
    [record] = [r for r in read_frames(data / "validate1.tfrecord") if r.id == "1e1"]
    starts = list(range(0, len(record.frames), 5))
    assert content["starts"] == starts
    assert content["ends"] == [min(start + 5, len(record.frames)) for start in starts]
    assert [found["number"] for found in content["classes"]] == [4, 1, 3]
    model = models.load(run)
    with torch.inference_mode():
        first = model(torch.from_numpy(record.frames[None, :5])).sigmoid()[0, [4, 1, 3]]
    np.testing.assert_allclose(content["scores"][0], first, atol=1e-5)
    ratings = zip(*record.ratings, strict=True)
    expected = sorted((start, start + 5, number, score > 0.5) for start, number, score in ratings)
    found = [(r["start"], r["end"], r["number"], r["positive"]) for r in content["ratings"]]
    assert sorted(found) == expected


def test_records_of_the_first_releases(run: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    """Their ids are called video_id, as those of AudioSet, whose frames are shorter."""
    old = FrameSchema(id_key="video_id")
    for path in data.glob("*.tfrecord"):
        records = [
            encode_frames(r.id, r.frames, r.labels, r.ratings, old) for r in read_frames(path)
        ]
        write_records(tmp_path / path.name, records)
    for name, source in (("old.csv", tmp_path), ("new.csv", data)):
        words = ["--run", str(run), "--data", str(source), "--out", str(tmp_path / name)]
        predict.main(words)
    assert (tmp_path / "old.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()
    drawn = []
    monkeypatch.setattr("pyseg.timeline.Timeline.save", lambda self, *_: drawn.append(self))
    words = ["--run", str(run), "--data", str(tmp_path), "--timeline", str(tmp_path / "t.png")]
    predict.main([*words, "--video", "1e1"])
    assert (drawn[0].title, drawn[0].segment_seconds) == ("1e1", 5.0)
    assert {rating.end - rating.start for rating in drawn[0].ratings} == {5.0}


def test_timeline_of_unlabelled_records(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    shard = tmp_path / "test0.tfrecord"
    frames = np.zeros((7, 1152), np.uint8)
    schema = FrameSchema(labels_key=None)
    write_records(shard, [encode_frames("a<b", frames, [], schema=schema)])
    arguments = ["--run", str(run), "--data", str(shard)]
    predict.main([*arguments, "--video", "a<b", "--timeline", str(tmp_path / "t.html")])
    page = (tmp_path / "t.html").read_text()
    assert "<title>a&lt;b</title>" in page
    assert not re.findall("<td>yes</td>|<td>no</td>", page)
    predict.main([*arguments, "--out", str(tmp_path / "s.csv")])
    submission = read_submission(tmp_path / "s.csv")
    assert all(sorted(segments) == ["a<b:0", "a<b:5"] for _, segments in submission)


def test_the_data_of_a_source_are_made_once(run: Path, data: Path, tmp_path: Path) -> None:
    made = []
    register_source("films", lambda: made.append(data) or data)  # type: ignore[func-returns-value]
    scorer = predict.Scorer(predict.PredictConfig(str(run), data="films"))
    assert made == [data]
    assert len(scorer.shards) > 0
