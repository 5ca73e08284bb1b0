from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pyseg.data import DataError
from pyseg.data.vocabulary import read_segment_vocabulary, read_vocabulary
from pyseg.data.youtube8m import NUM_CLASSES

HEADER = "Index,TrainVideoCount,KnowledgeGraphId,Name\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_names_are_in_order_of_index(tmp_path: Path) -> None:
    text = HEADER + '1,5,/m/b,"Rock, paper"\n0,9,/m/a,Música\n\n2,1,/m/c,\n'
    expected = ["Música", "Rock, paper", "/m/c"]  # a class without a name is named by its id
    assert read_vocabulary(write(tmp_path / "vocabulary.csv", text)) == expected
    packed = tmp_path / "vocabulary.csv.gz"
    packed.write_bytes(gzip.compress(("\ufeff" + text).replace("\n", "\r\n").encode()))
    assert read_vocabulary(packed) == expected


def test_segment_vocabulary_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "segment_vocabulary.csv", HEADER + "7,5,/m/b,Car\n3,9,/m/a,Concert\n")
    assert read_segment_vocabulary(path) == ([7, 3], ["Car", "Concert"])
    path = write(tmp_path / "segment_label_ids.csv", "Index\n7\n3\n")
    assert read_segment_vocabulary(path) == ([7, 3], ["7", "3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a column Index, found "),
        ("Number,Name\n0,a\n", "line 1: expected a column Index, found 'Number, Name'"),
        (HEADER, "expected at least one class, found none"),
        (HEADER + "0,5,/m/a\n", "line 2: expected 4 fields, found 3"),
        (
            HEADER + "0,5,/m/a,A\nx,5,/m/b,B\n",
            "line 3: expected Index to be a whole number, found 'x'",
        ),
        (HEADER + "-1,5,/m/a,A\n", "line 2: expected Index to be a whole number, found '-1'"),
        (HEADER + ",5,/m/a,A\n", "line 2: expected a value for Index, found none"),
        (
            HEADER + "0,5,/m/a,A\n0,5,/m/b,B\n",
            "line 3: expected every class once, found class 0 again",
        ),
        (HEADER + "0,5,/m/a,A\n2,5,/m/b,B\n", "the classes 0 to 1, one a line; class 1 is missing"),
        (HEADER + '0,5,/m/a,"A\n', "line 3: expected quotes as CSV has them, found: "),
    ],
)
def test_malformed_vocabulary(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "vocabulary.csv", text)
    with pytest.raises(DataError, match=message) as error:
        read_vocabulary(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"Index\ncaf\xe9\n",
            "line 2: expected UTF-8 text, found the byte 0xe9 in 'caf\ufffd.n'; save it as UTF-8$",
        ),
        (gzip.compress(b"Index\n0\n1\n2\n")[:-12], r"line \d+: .* damaged gzip data"),
    ],
    ids=["of another encoding", "cut"],  # compressed data contains the time
)
def test_not_text(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "vocabulary.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"vocabulary\.csv, {expected}"):
        read_vocabulary(path)


def test_the_published_vocabularies(shared: Path) -> None:
    names = read_vocabulary(shared / "data/yt8m/vocabulary.csv")
    assert len(names) == NUM_CLASSES
    assert names[:2] == ["Game", "Video game"]
    assert all(names)
    segments = read_segment_vocabulary(shared / "data/yt8m/segment_vocabulary.csv")
    assert len(segments.classes) == len(set(segments.classes)) == 1000
    same = [names[number] == name for number, name in zip(*segments, strict=True)]
    assert sum(same) > 990  # "Nike" in one file is "Nike, Inc." in the other
