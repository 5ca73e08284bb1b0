"""Submissions: the file, and its score."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg.data import DataError
from pyseg.submission import (
    Truth,
    judge,
    read_submission,
    read_truth,
    truth_of_segments,
    write_numbered,
    write_submission,
)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def truth(ratings: dict[int, dict[str, bool]]) -> Truth:
    videos = {segment.rpartition(":")[0] for rated in ratings.values() for segment in rated}
    return Truth(ratings, frozenset(videos), "test")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    ranked = [(12, ["1e10:0", "0012:295", "aé:5"]), (3, []), (0, ["a:b:5"]), (1, ['a,"b:5', '"'])]
    write_submission(tmp_path / "s.csv", ranked)
    names = ["1e10:0", "unused:0", "aé:5", '"', "0012:295", "a:b:5", 'a,"b:5']
    numbered = [(c, np.array([names.index(n) for n in own], np.uint32)) for c, own in ranked]
    write_numbered(tmp_path / "n.csv", numbered, names)
    assert (tmp_path / "n.csv").read_bytes() == (tmp_path / "s.csv").read_bytes()
    assert (tmp_path / "s.csv").read_bytes().startswith(b"Class,Segments\n12,1e10:0 0012:295 ")
    assert list(read_submission(tmp_path / "s.csv")) == ranked


@pytest.mark.parametrize(
    "header", ["", "Class,Segments\n", "Class Id,Segment Ids\r\n", "\ufeffC,S\n"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_line_ends_and_gzip(tmp_path: Path, header: str, packed: bool) -> None:
    path = write(tmp_path / "s.csv", f"{header}1,a:0  a:5 \r\n\r\n 2 ,b:0\n3,")
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_submission(path)) == [(1, ["a:0", "a:5"]), (2, ["b:0"]), (3, [])]


@pytest.mark.parametrize(
    "text",
    [
        '"Class","Segments"\n"3","a:0 b:5"\n7,"""x:0"\n',
        'Class,Segments\r3,a:0 b:5\r7,"""x:0"\r',
        'Class,Segments\n3,"a:0\r\nb:5"\n7,"""x:0"',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_submissions_are_read_as_csv_is(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(text.encode(encoding))
    assert list(read_submission(path)) == [(3, ["a:0", "b:5"]), (7, ['"x:0'])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0,a:0\n", r"line 1: expected the number of a class, found '1\.0'"),
        ("x,a:0\n", r"line 1: expected the number of a class, found 'x'"),
        (
            "C,S\n" + "9" * 5000 + ",a:0\n",
            r"line 2: expected the number of a class, found '9+\.\.\.'",
        ),
        ("1,a:0\n2,b\0:0\n", r"line 2: expected text, found a NUL in '2,b\\x00"),
        (
            '1,a:0\n2,"b:0\n3,c:0\n',
            r"line 4: expected quotes as CSV has them, found: unexpected end",
        ),
        ("1,a:0\n2;b:0\n", r"s\.csv, line 2: expected two columns, .*, found 1"),
        ("1,a:0\n2,b:0,c:0\n", r"s\.csv, line 2: expected two columns, .*, found 3"),
        ("Class,Segments\n\nx,a:0\n", r"s\.csv, line 3: expected the number of a class, found 'x'"),
        ("-1,a:0\n", r"s\.csv, line 1: expected the number of a class, found '-1'"),
        ("1,a:0\n1,b:0\n", r"line 2: expected every class once, found class 1 of line 1 again"),
        ("1,b:0\n2,\udcff", r"s\.csv, line 2: expected UTF-8 text, found the byte 0xff"),
    ],
)
def test_malformed_submissions(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        list(read_submission(path))


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_a_file_without_a_line(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "s.csv", content)
    with pytest.raises(DataError, match=r"s\.csv: expected a submission, found no line"):
        list(read_submission(path))
    assert list(read_submission(write(path, "Class,Segments\n"))) == []


def test_a_truncated_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "s.csv.gz"
    path.write_bytes(gzip.compress(b"1,a:0 a:5\n")[:-9])
    with pytest.raises(DataError, match=r"s\.csv\.gz, line 2: expected more text, found damaged"):
        list(read_submission(path))


@pytest.mark.parametrize("header", ["segment,class,score\n", "seg,label,score\n", ""])
def test_tables_of_ratings(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "t.csv", f"{header}a:0,3,1.0\n1e10:5,3,0.0\na:0,7,0\na:0,7,1\n")
    found = read_truth(path)
    assert found.ratings == {3: {"a:0": True, "1e10:5": False}, 7: {"a:0": True}}
    assert found.videos == {"a", "1e10"}
    assert (found.num_ratings, found.overwritten) == (3, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segment,class,score\n", r"t\.csv: expected ratings of segments, found none"),
        ("", r"t\.csv, line 1: expected a column segment"),
        ("video,class,score\na,1,1\n", r"line 1: expected a column segment .*found 'video"),
        ("a:0,1,1\na:0,1\n", r"t\.csv, line 2: expected 3 fields, found 2"),
        ("a:0,x,1\n", r"t\.csv, line 1: expected class to be a whole number, found 'x'"),
        ("a:0,1,2\n", r"t\.csv, line 1: expected a score in \[0, 1\], found 2"),
        ("a:05,1,1\n", r"t\.csv, line 1: expected a segment such as 06xy:25, found 'a:05'"),
        ("a:0,1000000,1\n", r"t\.csv, line 1: expected a class below 1000000, found 1000000"),
        ("a:0," + "1" * 5000 + ",1\n", r"line 1: expected class to be a whole number of at most 9"),
        ("a,1,1\n", r"t\.csv, line 1: expected a segment such as 06xy:25, found 'a'"),
    ],
)
def test_malformed_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_truth(write(tmp_path / "t.csv", text))


def test_records_without_ratings() -> None:
    with pytest.raises(DataError, match="here: expected ratings of segments, found none"):
        truth_of_segments([], "here")  # type: ignore[arg-type]


def test_everything_that_is_noticed() -> None:
    rated = truth(
        {
            1: {"a:0": True, "a:5": False, "b:0": True},
            2: {"a:0": False},
            4: {"b:5": True},
        }
    )
    result, report = judge(
        [
            (1, ["a:5", "a:5", "z:0", "a:0", "a:5", "b:0"]),
            (2, ["a:0"]),
            (9, ["a:0", "a:0.0", "a:05", "b"]),
        ],
        rated,
        k=3,
    )
    # The first three distinct segments of class 1 are a:5, z:0 and a:0; b:0 is missed, but counts.
    assert result.per_class.tolist() == [0, (1 / 2) / 2, 0, 0, 0]
    assert result.map == pytest.approx((1 / 4 + 0) / 2)  # class 4 is missing: 0
    assert result.positives.tolist() == [0, 2, 0, 0, 1]
    assert report.missing_classes == [4]
    assert report.unknown_classes == [9]
    assert (report.duplicates, report.beyond, report.unlisted) == (2, 2, 2)
    assert report.malformed == (3, "a:0.0")
    assert report.unknown == (1, "z:0")
    assert len(list(report.lines())) == 7


def test_nothing_to_notice() -> None:
    _, report = judge([(1, ["a:0"])], truth({1: {"a:0": True}}))
    assert list(report.lines()) == []


def test_one_class_and_the_last_segment_of_a_line(tmp_path: Path) -> None:
    """The starter code's tool has two bugs here: it needs two classes and keeps the line end."""
    path = write(tmp_path / "s.csv", "Class,Segments\n5,x:0 a:0\n")
    result, _ = judge(read_submission(path), truth({5: {"a:0": True}}))
    assert result.map == 1.0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_against_a_plain_loop(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 3))
    names = [f"{video}:{start}" for video in "abc" for start in (0, 5)]
    some = st.lists(st.sampled_from([*names, "z:0"]), max_size=9)
    ratings = {
        c: data.draw(st.dictionaries(st.sampled_from(names), st.booleans(), min_size=1))
        for c in range(classes)
    }
    submission = {c: data.draw(some) for c in range(classes) if data.draw(st.booleans())}
    k = data.draw(st.integers(1, 8))
    result, _ = judge(submission.items(), truth(ratings), k=k)
    averages = []
    for c in range(classes):
        positives = sum(ratings[c].values())
        hits, rank, total, looked_at = 0, 0, 0.0, []
        for segment in submission.get(c, []):
            if segment in looked_at or len(looked_at) == k:
                continue
            looked_at.append(segment)
            if segment in ratings[c]:
                rank += 1
                hits += ratings[c][segment]
                total += ratings[c][segment] * hits / rank
        averages.append(total / min(positives, k) if positives else 0.0)
        assert result.per_class[c] == pytest.approx(averages[c], abs=1e-12)
    positive = [a for c, a in enumerate(averages) if any(ratings[c].values())]
    expected = np.mean(positive) if positive else np.nan
    assert result.map == pytest.approx(expected, nan_ok=True)
