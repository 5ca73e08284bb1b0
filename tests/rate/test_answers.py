"""The file of answers: exact after every kill, shared by raters, and going on with any table."""

from __future__ import annotations

import csv
import os
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from pyseg.data import Annotations, FeatureSet, read_annotations
from pyseg.errors import ArgumentError, DataError, MissingFileError, UserError
from pyseg.rate.answers import Answer, AnswerFile, settle

HEADER = b"video,start,end,class,score,rater,reason,time\n"
HOSTILE = ('cars, "red"', "caf\u00e9 \U0001f600", '"')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ratings.csv"


def said(answers: AnswerFile) -> list[tuple[str, float | None, str, str]]:
    return [(row.name, row.score, row.rater, row.reason) for row in answers.rows()]


def fields(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file, strict=True))


def start_rater(path: Path, rater: str, count: int) -> tuple[int, BinaryIO]:
    """Forks a process that appends answers; returns its number, and what gets a byte for each."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which it does not need
        process = os.fork()
    if process == 0:
        try:
            answers = AnswerFile(path, rater)
            for number in range(count):
                answers.add(f"{rater}, {number}", 0, 5, "dog", 1, "random")
                os.write(write, b".")
        finally:
            os._exit(0)
    os.close(write)
    return process, open(read, "rb")


def test_an_answer_is_a_line_of_the_table_with_all_columns(path: Path) -> None:
    answers = AnswerFile(path, "ann")
    answers.add("my clip, 2", 0, 5 * 0.96, "dog", 1, "random")
    answers.add("my clip, 2", 5 * 0.96, 9.6, "dog", None, "change")
    answers.add("b", 0.1 + 0.2, 1, "dog", 0.25, "change")

    assert path.read_bytes().startswith(HEADER)
    lines = fields(path)[1:]
    assert [line[:7] for line in lines] == [
        ["my clip, 2", "0", "4.8", "dog", "1", "ann", "random"],
        ["my clip, 2", "4.8", "9.6", "dog", "", "ann", "change"],
        ["b", "0.3", "1", "dog", "0.25", "ann", "change"],
    ]
    assert all(line[7].endswith("Z") and len(line[7]) == 20 for line in lines)
    assert [row.line for row in answers.rows()] == [2, 3, 4]
    assert AnswerFile(path, "bob").rows() == answers.rows()


def test_a_file_that_ends_at_any_byte_has_all_answers_before_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow
    answers = AnswerFile(path, "ann, the first")
    for name in HOSTILE:
        answers.add(f"of {name}", 0, 5, name, 1, "random")
    whole, rows = path.read_bytes(), answers.rows()
    ends = [end for end in range(len(whole) + 1) if whole[:end].endswith(b"\n")]

    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        complete = sum(line <= end for line in ends[1:])
        if end >= ends[0]:  # what other commands read before the file is repaired
            names = {interval.name for interval in read_annotations(path).intervals}
            assert {row.name for row in rows[:complete]} <= names
        found = AnswerFile(path, "bob")
        kept = [row[:7] for row in found.rows()]
        assert kept in (
            [row[:7] for row in rows[:complete]],
            [row[:7] for row in rows[: complete + 1]],
        )
        found.add("next", 0, 5, "dog", 0, "random")
        assert [row[:7] for row in AnswerFile(path, "bob").rows()] == [
            *kept,
            ("next", 0.0, 5.0, "dog", 0.0, "bob", "random"),
        ]
        assert [len(line) for line in fields(path)] == [8] * (len(kept) + 2)


def test_killed_and_concurrent_raters_lose_no_answer(path: Path) -> None:
    (killed, told), (other, rest) = start_rater(path, "ann", 10**6), start_rater(path, "bob", 60)
    with told, rest:
        count = len(told.read(30))
        os.kill(killed, signal.SIGKILL)
        count += len(told.read())
        rest.read()
    for process in (killed, other):
        os.waitpid(process, 0)

    rows = AnswerFile(path, "eve").rows()
    by_rater = {
        rater: [row.video for row in rows if row.rater == rater] for rater in ("ann", "bob")
    }
    assert by_rater["bob"] == [f"bob, {number}" for number in range(60)]
    # One answer may be on the disk that the killed process has not told of.
    assert len(by_rater["ann"]) - count in (0, 1)
    assert by_rater["ann"] == [f"ann, {number}" for number in range(len(by_rater["ann"]))]


def test_undo_takes_back_own_answers_one_after_the_other_also_after_a_restart(path: Path) -> None:
    ann, bob = AnswerFile(path, "ann"), AnswerFile(path, "bob")
    ann.add("a", 0, 5, "dog", 1, "random")
    ann.add("a", 5, 10, "dog", None, "change")
    ann.add("a", 0, 5, "dog", 0, "check")
    bob.add("a", 0, 5, "dog", 1, "random")

    taken = ann.undo()
    assert taken is not None
    assert taken[1:7] == (0, 5, "dog", 0, "ann", "check")
    assert ann.rows()[-1][1:7] == (0, 5, "dog", 1, "ann", "undo")
    ann = AnswerFile(path, "ann")
    ann.add("a", 10, 15, "cat", 1, "random")
    for start, score in ((10, 1.0), (5, None), (0, 1.0)):
        taken = AnswerFile(path, "ann").undo()
        assert taken is not None
        assert (taken.start, taken.score) == (start, score)
    assert AnswerFile(path, "ann").undo() is None

    assert bob.refresh()
    assert not bob.refresh()
    [settled] = settle(bob.rows())
    assert (settled.start, settled.score, settled.raters) == (0, 1, ("bob",))
    assert AnswerFile(path, "eve").undo() is None


def test_the_majority_of_last_lines_settles(path: Path) -> None:
    def row(rater: str, score: float | None, start: float = 0.0, reason: str = "change") -> Answer:
        return Answer("a", start, start + 5, "dog", score, rater, reason)

    rows = [row("ann", 0), row("bob", 1), row("ann", 1, reason="check"), row("eve", 0)]
    [found] = settle(rows)
    assert (found.score, found.tied, found.raters) == (1, False, ("ann", "bob", "eve"))
    assert found.reason == "change"

    [found] = settle([*rows, row("bob", None)])
    assert (found.score, found.tied, found.raters) == (0.5, True, ("ann", "eve"))
    [found] = settle([row("ann", 0.5)])
    assert (found.score, found.tied) == (0.5, False)
    [found] = settle([row("ann", 0.9), row("bob", 0.7), row("eve", 0.2)])
    assert found.score == pytest.approx(0.8)
    # A time that was calculated in another way is the same.
    assert len(settle([row("ann", 1, 0.1 + 0.2), row("bob", 0, 0.3)])) == 1
    assert settle([row("ann", None)]) == []


@pytest.mark.parametrize(
    "content",
    [
        "video,start,end,class,score\na,0,5,dog,1\nb,0,5,cat,0.5",
        "\ufeffvideo;start;end;class;score\r\na;0;5;dog;1\r\nb;0;5;cat;0.5\r\n",
        "class\tscore\tvideo\tstart\tend\ndog\t1\ta\t0\t5\n\ncat\t0.5\tb\t0\t5\n",
        'video,note,start,end,class,score\na,"two\nlines, ""quoted""",0,5,dog,1\nb,,0,5,cat,.5',
        "video,start,end,class,score,rater\na,0,5,dog,1,\nb,0,5,cat,0.5,",
        '\nvideo,start,end,"class",score\ra,0,5,dog,1\rb,0,5,cat,0.5\r',
    ],
    ids=[
        "no line end",
        "mark, semicolons, CR LF",
        "tabs",
        "line ends in quotes",
        "some columns",
        "CR",
    ],
)
def test_a_persons_table_goes_on_in_its_own_way(path: Path, content: str) -> None:
    path.write_text(content, newline="")
    path.chmod(0o640)
    before = [tuple(interval)[:5] for interval in read_annotations(path).intervals]
    answers = AnswerFile(path, "ann")
    assert [row[:6] for row in answers.rows()] == [(*interval, "") for interval in before]
    assert answers.undo() is None

    answers.add("a", 0, 5, "dog", 0, "random")
    answers.add("c", 0, 5, "cars; red", None, "random")
    again = AnswerFile(path, "bob")
    assert again.rows() == answers.rows()
    assert [row[:7] for row in again.rows()[-2:]] == [
        ("a", 0, 5, "dog", 0, "ann", "random"),
        ("c", 0, 5, "cars; red", None, "ann", "random"),
    ]
    now = path.read_bytes().decode()
    end = "\r\n" if "\r\n" in content else "\r" if "\r" in content else "\n"
    assert now.count(end) == now.count("\n" if end != "\r" else "\r")
    for line in content.splitlines():  # what the person wrote is still there
        assert line in now
    assert path.stat().st_mode & 0o777 == 0o640
    # The first rater had no name; they disagree.
    assert [settled.tied for settled in settle(again.rows())] == [True, False]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"video,start,end,class\na,0,5,dog\n", "line 1"),
        (b"some text\n", "line 1"),
        ("video,start,end,class,score\n".encode("utf-16"), "UTF-16"),
        (b"time,video,start,end,class,score,rater,reason\n", "line 1"),
        (HEADER + b"a,0,5,dog,2,ann,random,\n", "line 2"),
        (HEADER + b"a,0,5,dog,1\nb,0,5,dog,1,ann,random,\n", "line 2"),
        (b"video,start,end,class,score\na,5,0,dog,1\n", "line 2"),
        (b"video,start,end,class,score\na,0,5,dog,\n", "line 2"),
        (b"video,start,end,class,score\na,0,5,do", "line 2"),
        (b"\x89PNG\r\n\x1a\n\0\0", "line"),
    ],
)
def test_any_other_file_is_refused_and_stays(path: Path, content: bytes, found: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=found) as error:
        AnswerFile(path, "ann")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        ("rater,reason,time,comment", "delete the column comment, or move it before rater"),
        ("rater,note,reason,time,more", "delete the columns note,more, or move them before rater"),
        ("time,rater,reason", "move the columns rater,reason,time to the end, in this order"),
        ("time", "rename or delete the column time"),
        ("rater,reason,rater", "rename or delete the column rater"),
    ],
)
def test_columns_that_cannot_be_continued(path: Path, columns: str, remedy: str) -> None:
    path.write_text(f"video,start,end,class,score,{columns}\n")
    with pytest.raises(DataError, match=f"; {remedy}$"):
        AnswerFile(path, "ann")
    path.write_text("video,start,end,class,rater,score,reason,time\n")
    with pytest.raises(DataError, match=r"; move the column score before rater$"):
        AnswerFile(path, "ann")


def test_a_column_before_those_of_answers_is_kept(path: Path) -> None:
    path.write_text(
        "video,start,end,class,score,note,rater,reason,time\na,0,5,dog,1,hm,bob,change,\n"
    )
    AnswerFile(path, "ann").add("b", 0, 5, "dog", 1, "random")
    assert [line[5] for line in fields(path)[1:]] == ["hm", ""]


def test_a_place_that_cannot_be_written_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingFileError, match="no folder"):
        AnswerFile(path / "no folder" / "ratings.csv", "ann")
    with pytest.raises(UserError, match="folder"):
        AnswerFile(path.parent, "ann")

    def denied(name: Path, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionError, match=r"ratings\.csv"):
        AnswerFile(path, "ann")


def test_a_full_disk_leaves_no_part_of_an_answer(path: Path) -> None:
    answers = AnswerFile(path, "ann")
    answers.add("a", 0, 5, "dog", 1, "random")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"ratings\.csv"):
            answers.add("b", 0, 5, "dog", 1, "random")
        assert path.read_bytes() == before
        with pytest.raises(OSError, match=r"ratings\.csv"):
            answers.undo()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    answers.add("c", 0, 5, "dog", 1, "random")
    assert [row.video for row in answers.rows()] == ["a", "c"]


def test_what_somebody_edits_meanwhile_is_read_again(path: Path) -> None:
    answers = AnswerFile(path, "ann")
    answers.add("a", 0, 5, "dog", 1, "random")
    edited = path.read_text().replace("dog", "dogs")
    path.unlink()
    path.write_text(edited)
    assert answers.refresh()
    answers.add("b", 0, 5, "dog", 1, "random")
    assert [row.name for row in answers.rows()] == ["dogs", "dog"]
    path.write_text("something else\n")
    with pytest.raises(DataError, match="line 1"):
        answers.add("c", 0, 5, "dog", 1, "random")
    assert path.read_text() == "something else\n"
    path.unlink()
    answers.add("d", 0, 5, "dog", 1, "random")
    assert [row.video for row in AnswerFile(path, "ann").rows()] == ["d"]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (("two\nlines", 0, 5, "dog", 1, "random"), "video"),
        (("a", 5, 5, "dog", 1, "random"), "start"),
        (("a", 0, float("nan"), "dog", 1, "random"), "start"),
        (("a", 0, 5, "a\tb", 1, "random"), "class"),
        (("a", 0, 5, "dog", 2, "random"), "score"),
        (("a", 0, 5, "dog", 1, "undo"), "reason"),
        (("a", 0, 5, "dog", 1, ""), "reason"),
    ],
)
def test_values_out_of_range_are_not_written(
    path: Path, values: tuple[str, float, float, str, float, str], name: str
) -> None:
    answers = AnswerFile(path, "ann")
    with pytest.raises(ArgumentError, match=name):
        answers.add(*values)
    assert path.read_bytes() == HEADER
    with pytest.raises(ArgumentError, match="rater"):
        AnswerFile(path, "")


@pytest.fixture
def write(path: Path) -> Callable[[str], Path]:
    def write(lines: str) -> Path:
        path.write_bytes(HEADER + lines.encode())
        return path

    return write


def test_other_commands_read_what_the_answers_settle(write: Callable[[str], Path]) -> None:
    path = write(
        "a,0,5,dog,1,ann,random,\n"
        "a,0,5,dog,0,ann,check,\n"
        "a,5,10,dog,1,ann,change,\n"
        "a,5,10,dog,0,bob,change,\n"
        "b,0,5,dog,,ann,change,\n"
        "b,0,5,cat,1,ann,change,\n"
        "b,0,5,cat,,ann,undo,\n"
        "b,5,10,cat,1,ann,ch"
    )
    found = read_annotations(path)
    assert [interval[:5] for interval in found.intervals] == [
        ("a", 0, 5, "dog", 0),
        ("a", 5, 10, "dog", None),
        ("b", 0, 5, "dog", None),
    ]
    assert [*found.videos] == ["a", "b"]
    [note] = found.notes
    assert "disagree on 1 rating" in note
    assert "'dog' in 'a' from 5 to 10 s" in note
    assert f"{path}, line 5" in note
    # What was skipped or is disputed stays unrated, even if the class is complete.
    annotations = Annotations.match("ab", found, complete="all")
    assert annotations.rated_classes == ["dog"]
    features = FeatureSet((("clip", 4),))  # segments of 5 seconds
    assert annotations.of_segments("a", 15, features).scores == {(0, "dog"): 0, (2, "dog"): 0}
    assert annotations.of_segments("b", 10, features).scores == {(1, "dog"): 0}
