"""Extraction of many videos: the collection, the manifest, resumption and errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyseg import _files, video
from pyseg._progress import Progress
from pyseg.data import FeatureSet, open_collection, read_frames
from pyseg.errors import ArgumentError, DataError, MissingFileError, UserError
from pyseg.extract import ExtractConfig, extract, extraction, main
from pyseg.extract import worker as working

NUMBERS = "tests.extract.networks:numbers"


def config(videos: Path | list[str], out: Path, **options: Any) -> ExtractConfig:
    paths = videos if isinstance(videos, list) else [str(videos)]
    given = {"backbone": NUMBERS, "fps": 5, "segment_seconds": 1.0, "processes": 0, **options}
    return ExtractConfig(videos=paths, out=str(out), device="cpu", **given)


def numbers(out: Path) -> dict[str, list[int]]:
    """Returns the numbers of the frames of every video in a collection."""
    features = FeatureSet.read(out / "features.json")
    found = {}
    for record in read_frames(out / "videos-00000.tfrecord", features.schema):
        rows = features.dequantize(record.frames)
        found[record.id] = rows[:, 0].tolist()
        np.testing.assert_allclose(rows[:, 1:], 1, atol=0.01)
    return found


def content(out: Path) -> dict[str, bytes]:
    """Returns what an extraction has written, without times."""
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    lines = [json.loads(line) for line in files["manifest.jsonl"].decode().splitlines()]
    files["manifest.jsonl"] = json.dumps([{**line, "seconds": 0} for line in lines]).encode()
    return files


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    extract(config(videos, out))
    return out


def test_the_records_have_the_right_frames(whole: Path) -> None:
    found = numbers(whole)
    assert list(found) == ["b", "c d", "e"]
    for rows, expected in zip(
        found.values(), (range(0, 30, 2), range(100, 155, 2), range(500, 520, 2)), strict=True
    ):
        np.testing.assert_allclose(rows, expected, atol=518 / 255 / 2 + 0.01)


def test_features_json_describes_the_extraction(whole: Path) -> None:
    features = FeatureSet.read(whole / "features.json")
    assert features.features == (("number", 1), ("one", 2))
    assert (features.frame_seconds, features.segment_size) == (0.2, 5)
    assert features.ranges[0] == (0, 518)
    assert features.backbone is not None
    assert (features.backbone.name, features.backbone.sha256) == (NUMBERS, "1" * 64)
    assert features.backbone.preprocessing == {"size": [48, 64], "crop": False, "reads": "bars"}
    assert features.sampling is not None


def test_the_manifest_has_a_line_a_video(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    (folder / "a.mp4").write_bytes(b"no video")
    (folder / "f.mp4").write_bytes((videos / "c d.mp4").read_bytes()[:2000])
    from tests.video.make_videos import Video

    path = Video(range(60), rate=10).write(folder / "g.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = extract(config(folder, tmp_path / "out"))
    lines = [
        json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()
    ]
    assert [line["status"] for line in lines] == ["skipped", *["ok"] * 3, "skipped", "truncated"]
    assert [line["id"] for line in lines] == ["a", "b", "c d", "e", "f", "g"]
    assert "a.mp4: expected a video, found none that can be read" in lines[0]["reason"]
    assert lines[5]["reason"].startswith("the file ends after ")
    assert lines[2] == {
        **lines[2],
        **{"path": str(folder / "c d.mp4"), "size": (videos / "c d.mp4").stat().st_size},
        **{"duration": 5.5, "frames": 28, "decoded_frames": 55, "corrupt_frames": 0},
        **{"reason": None, "note": None},
    }
    assert 0 < lines[5]["frames"] < 30
    assert list(numbers(tmp_path / "out")) == ["b", "c d", "e", "g"]
    assert done.report.videos == 4


def test_ratings_and_labels_go_into_the_records(videos: Path, tmp_path: Path) -> None:
    ratings, labels = tmp_path / "ratings.csv", tmp_path / "labels.csv"
    ratings.write_text(
        "video,start,end,class,score\nb,0,1,dog,1\nc d.mp4,1,3,cat,0\nbad,0,1,dog,1\n"
    )
    labels.write_text("video,class\ne,rain\n")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    given = [str(videos), str(tmp_path / "bad.mp4")]
    out = tmp_path / "out"
    done = extract(config(given, out, ratings=str(ratings), labels=str(labels), complete=["dog"]))
    assert done.report.rated == {"dog": 3 + 6, "cat": 2}
    assert any("left out the annotations of 1 video that" in note for note in done.report.notes)
    records = {
        record.id: record
        for record in read_frames(out / "videos-00000.tfrecord", done.features.schema)
    }
    assert records["b"].ratings.starts.tolist() == [0, 5, 10]
    assert records["b"].ratings.scores.tolist() == [1, 0, 0]
    assert records["e"].labels.tolist() == [2]
    assert open_collection(out).features == done.features


def test_a_rating_outside_of_its_video_is_found_before_anything_is_decoded(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("pyseg.extract.worker.process", decode)
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("video,start,end,class,score\nb,0,1,dog,1\nc d,30,35,dog,1\n")
    with pytest.raises(
        DataError, match=r"ratings\.csv, line 3: expected times within the 5.6 s of "
    ):
        extract(config(videos, tmp_path / "out", ratings=str(ratings)))
    assert not (tmp_path / "out").exists()


def test_a_repeated_command_computes_only_what_is_missing(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(videos, folder)
    (folder / "e.mp4").rename(tmp_path / "later.mp4")
    extract(config(folder, out))
    computed = []
    real = working.process
    monkeypatch.setattr(
        working, "process", lambda video, *rest: computed.append(video.id) or real(video, *rest)
    )
    extract(config(folder, out))
    assert computed == []
    (tmp_path / "later.mp4").rename(folder / "e.mp4")
    extract(config(folder, out))
    assert computed == ["e"]
    assert list(numbers(out)) == ["b", "c d", "e"]
    os.utime(folder / "b.mp4", ns=(0, 0))
    extract(config(folder, out))
    assert computed == ["e", "b"]


def test_more_videos_keep_the_ranges(videos: Path, tmp_path: Path) -> None:
    """A run that was trained before fits what the folder has afterwards."""
    from tests.video.make_videos import Video

    out, folder = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(videos, folder)
    before = extract(config(folder, out)).features
    Video(range(600, 620), rate=10).write(folder / "a.mp4")
    done = extract(config(folder, out))
    assert done.features == before == FeatureSet.read(out / "features.json")
    assert done.report.clipped["number"] == 10
    (out / "features.json").unlink()  # as after a crash while the collection is replaced
    assert extract(config(folder, out)).features == before
    for path in (out / "features.json", out / "parts/features.json"):
        path.unlink()
    assert extract(config(folder, out)).features.ranges[0] == (0, 618)


def test_a_repetition_tells_what_it_leaves_out(videos: Path, tmp_path: Path) -> None:
    ratings, labels = tmp_path / "ratings.csv", tmp_path / "labels.csv"
    ratings.write_text("video,start,end,class,score\nb,0,1,dog,1\nb,1,3,cat,0\n")
    labels.write_text("video,class\nb,rain\n")
    out, some = tmp_path / "out", [str(videos / "b.mp4")]
    assert extract(config(videos, out)).report.notes == []
    done = extract(config(videos, out, ratings=str(ratings), labels=str(labels)))
    assert done.report.notes == []
    assert extract(config(some, out, ratings=str(ratings), labels=str(labels))).report.notes == [
        f"left out 2 videos that {out} had: c d, e"
    ]
    assert extract(config(some, out)).report.notes == [
        f"left out all ratings of 2 classes that {out} had: cat, dog",
        f"left out 1 class that {out} had: rain",
    ]
    ratings.write_text("video,start,end,class,score\n")
    done = extract(config(videos, out, ratings=str(ratings)))
    assert done.report.notes == [f"{ratings} has no ratings"]


def test_a_damaged_manifest_is_written_again(videos: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for text in ("[]", "{", '{"id": 3}', "\xff"):
        (out / "manifest.jsonl").write_text(text, "latin-1")
        assert extract(config(videos, out)).report.notes == []
    assert content(out) == content(whole)


def test_like_takes_the_ranges_of_a_run(
    videos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = FeatureSet.read(whole / "features.json")
    run = tmp_path / "my run"
    run.mkdir()
    shutil.copy(whole / "features.json", run)
    (run / "config.yaml").touch()
    given = [f"--videos={videos / 'b.mp4'}", f"--backbone={NUMBERS}", f"--out={tmp_path / 'out'}"]
    command = [*given, "--fps=5", "--segment_seconds=1", "--processes=0"]
    main(command)
    assert FeatureSet.read(tmp_path / "out/features.json").ranges[0] == (0, 28)
    out = capsys.readouterr().out
    assert f"pyseg.rate --data {tmp_path / 'out'} --classes CLASS,CLASS" in out
    assert "this command with --like RUN; then:" in out
    main([*command, f"--like={run}"])
    assert FeatureSet.read(tmp_path / "out/features.json") == expected
    out = capsys.readouterr().out
    assert "--like RUN" not in out
    assert f"pyseg.predict --run '{run}' --data {tmp_path / 'out'}" in out
    main(command)  # as before, it keeps them
    assert FeatureSet.read(tmp_path / "out/features.json") == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fps": 10}, "like: expected --fps 5 --segment_seconds 1 as in .*, found --fps 10 --seg"),
        ({"segment_seconds": 2}, "like: expected --fps 5 --segment_seconds 1 as in .*, found"),
        ({"backbone": "tests.extract.networks:pitch"}, "like: .*features.json: backbone: expected"),
        ({"like": "none"}, "like: expected a folder with features.json, found none"),
    ],
)
def test_like_refuses_other_features(
    options: dict[str, Any], match: str, videos: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises((ArgumentError, MissingFileError), match=match):
        extract(config(videos, tmp_path / "out", **{"like": str(whole), **options}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"fps": 10}, {"fast": True}])
def test_other_options_are_refused(
    options: dict[str, Any], videos: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = content(out)
    with pytest.raises(UserError, match=f"its features have another {next(iter(options))}: "):
        extract(config(videos, out, **options))
    assert content(out) == before
    extract(config(videos, out, segment_seconds=2.0))
    assert FeatureSet.read(out / "features.json").segment_size == 10


def test_parts_may_be_removed(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(config(videos, out, keep_parts=False))
    assert not (out / "parts").exists()
    with pytest.raises(UserError, match=r"--out .*: expected a new folder or one with parts"):
        extract(config(videos, out))


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_an_extraction_goes_on_after_any_moment(
    videos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file appears by being renamed: the process ends before each of the renames."""
    real = os.replace
    left = 0

    def replace(source: Any, target: Any) -> None:
        nonlocal left
        if not left:
            raise KilledError
        left -= 1
        real(source, target)

    monkeypatch.setattr(_files.os, "replace", replace)
    expected = content(whole)
    for moment in range(100):
        out = tmp_path / str(moment)
        left = moment
        try:
            extract(config(videos, out))
        except KilledError:
            left = 1000
            extract(config(videos, out))
            assert content(out) == expected, f"after {moment} renames"
            assert not [path for path in out.rglob("*") if path.suffix in (".part", ".lock")]
        else:
            break
    assert moment > 10


def test_a_request_to_stop_keeps_what_is_finished(
    videos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    out = tmp_path / "out"
    real = working.process

    def process(video: Any, work: Any, backbone: Any, tell: Any, stopped: Any) -> Any:
        def told(share: float) -> None:
            tell(share)
            if video.id == "c d":
                os.kill(os.getpid(), signal.SIGINT)

        return real(video, work, backbone, told, stopped)

    monkeypatch.setattr(working, "process", process)
    with pytest.raises(KeyboardInterrupt):
        extract(config(videos, out, batch_size=4))
    [line] = (out / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "b"
    monkeypatch.setattr(working, "process", real)
    extract(config(videos, out))
    assert content(out) == content(whole)


def test_processes_leave_interrupts_to_the_first_one() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    member = working._Member(None)  # type: ignore[arg-type]
    status = Path(f"/proc/{member._process.pid}/status").read_text()  # while it imports
    member._process.kill()
    member.end()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) & 1 << signal.SIGINT - 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_killed_processes_leave_what_the_same_command_continues(
    videos: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--fps=5", "--segment_seconds=1", "--processes=1", "--batch_size=2", f"--out={out}"]
    slow = [f"--videos={videos}", "--backbone=tests.extract.networks:slow", *words]
    command = [sys.executable, "-m", "pyseg.extract", *slow]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len([*(out / "parts").glob("*.json")]) < 2:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        errors = process.stderr.read() if process.stderr else ""
    assert process.returncode == -signal.SIGKILL, errors
    assert not (out / "features.json").exists()
    assert children
    until = time.monotonic() + 60
    while any(alive(int(child)) for child in children):  # they notice the end of their parent
        assert time.monotonic() < until
        time.sleep(0.05)
    extract(config(videos, out))
    assert (out / "videos-00000.tfrecord").read_bytes() == (
        whole / "videos-00000.tfrecord"
    ).read_bytes()
    assert not [path for path in out.rglob("*") if path.suffix in (".part", ".lock")]


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_dead_process_loses_only_its_video(videos: Path, tmp_path: Path) -> None:
    done = extract(
        config(videos, tmp_path / "out", backbone="tests.extract.networks:deadly", processes=1)
    )
    outcomes = {video.id: outcome for video, outcome in done.outcomes}
    assert [outcome.status for outcome in outcomes.values()] == ["ok", "ok", "skipped"]
    assert outcomes["e"].reason == "the process that read it has died: SIGKILL"
    assert list(numbers(tmp_path / "out")) == ["b", "c d"]


@pytest.mark.parametrize("processes", [0, 1])
def test_weights_that_differ_between_processes_are_refused(
    processes: int, videos: Path, tmp_path: Path
) -> None:
    options = {"backbone": "tests.extract.networks:unseeded", "processes": processes}
    with pytest.raises(UserError, match=r"makes other weights every time: seed or load them$"):
        extract(config(videos, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_the_progress_counts_seconds_of_video(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "films"
    shutil.copytree(videos, folder)
    with (folder / "b.mp4").open("ab") as file:  # 3 s of a high bit rate
        file.write(b"\0\0\0\0free" + bytes(5_000_000))
    (folder / "no.mp4").write_bytes(bytes(1_000_000))
    stated = video.stated_duration
    monkeypatch.setattr(
        video, "stated_duration", lambda path: None if path.endswith("e.mp4") else stated(path)
    )
    shown: list[tuple[str, int, int | None]] = []

    class Shown(Progress):
        def note(self, **notes: Any) -> None:
            shown.append((notes["videos"], self.done, self.total))
            super().note(**notes)

    monkeypatch.setattr(extraction, "Progress", Shown)
    extract(config(folder, tmp_path / "out"))
    # The size of e.mp4 makes it 0 s long at the mean bit rate.
    assert [line[:2] for line in shown] == [
        ("0 of 4", 0),
        ("1 of 4", 3),
        ("2 of 4", 3 + 6),
        ("3 of 4", 3 + 6),
        ("4 of 4", 3 + 6),
    ]
    assert {total for _, _, total in shown} == {3 + 6}


def test_ids(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["x/film", "y/film", "ünïcode, with comma", "two\nlines"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(videos / "b.mp4", tmp_path / f"{name}.mp4")
    out = tmp_path / "out"
    words = [f"--videos={tmp_path}/**/*.mp4", f"--backbone={NUMBERS}", f"--out={out}"]
    main([*words, "--processes=0", "--segment_seconds=1"])
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    by_path = {line["path"].removeprefix(f"{tmp_path}/"): line for line in lines}
    assert by_path["x/film.mp4"]["id"] != by_path["y/film.mp4"]["id"]
    assert by_path["x/film.mp4"]["id"].startswith("film-")
    assert by_path["x/film.mp4"]["note"] == "2 videos have this name"
    assert by_path["ünïcode, with comma.mp4"]["id"] == "ünïcode, with comma"
    assert {line["id"] for line in lines} == {*numbers(out)}
    assert "with an id other than the name, see manifest.jsonl" in capsys.readouterr().out


def test_ratings_name_videos_by_their_paths(videos: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        shutil.copy(videos / "b.mp4", tmp_path / folder / "b.mp4")
    ratings = tmp_path / "ratings.csv"
    paths = [str(tmp_path / folder) for folder in "xy"]
    given = config(paths, tmp_path / "out", ratings=str(ratings))
    ratings.write_text("video,start,end,class,score\nb.mp4,0,1,dog,1\n")
    with pytest.raises(DataError, match=r"2 videos are called 'b\.mp4': b-\w{8} \(\S+/b\.mp4\)"):
        extract(given)
    ratings.write_text("video,start,end,class,score\ny/b.mp4,0,1,dog,1\n")
    outcomes = extract(given).outcomes
    [id] = [video.id for video, _ in outcomes if video.path == str(tmp_path / "y" / "b.mp4")]
    schema = FeatureSet.read(tmp_path / "out" / "features.json").schema
    records = read_frames(tmp_path / "out" / "videos-00000.tfrecord", schema)
    rated = {record.id for record in records if record.ratings is not None}
    assert (rated, len(outcomes)) == ({id}, 2)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"videos": ["none/*.mp4"]}, MissingFileError, "^--videos none/.*: no file matches"),
        ({"backbone": "resnet"}, ArgumentError, "backbone: expected one of"),
        ({"ratings": "ratings.csv"}, DataError, "ratings.csv, line 2: expected one of 3 videos"),
        ({"ratings": "no.csv"}, MissingFileError, "no.csv: no such file"),
        ({"videos": ["bad.mp4"]}, DataError, "none of 1 video can be read: bad.mp4: expected"),
    ],
)
def test_errors_leave_nothing(
    options: dict[str, Any],
    kind: type[Exception],
    match: str,
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ratings.csv").write_text("video,start,end,class,score\nnone,0,1,dog,1\n")
    Path("bad.mp4").write_bytes(b"no video")
    with pytest.raises(kind, match=match) as caught:
        extract(config(**{"videos": videos, "out": tmp_path / "out", **options}))
    assert "\n" not in str(caught.value)
    left = [path.name for path in (tmp_path / "out").glob("*")]
    assert left == (["manifest.jsonl"] if options.get("videos") == ["bad.mp4"] else [])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fps": 0.0}, "fps: expected"),
        ({"fps": 1e9}, "fps: expected at most 1,000"),
        ({"segment_seconds": 0.3}, "segment_seconds: expected a multiple of a frame of 0.2 s"),
        ({"processes": -1}, "processes: expected at least 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"complete": ["dog"]}, "complete: expected --ratings with it"),
    ],
)
def test_wrong_options(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=match):
        config(tmp_path, tmp_path, **options)
