"""``python -m pyseg.cooccur``: from label lists to the file and the summary."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from pyseg import cooccur
from pyseg.data import DataError, FeatureSet, FrameSchema, RecordError
from pyseg.data.records import encode_frames, write_records
from pyseg.errors import UserError
from pyseg.labels import LabelCorrelation, prior_strength

VOCABULARY = "Index,Name\n" + "".join(f"{i},{name}\n" for i, name in enumerate("abcde"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lists.csv").write_text("v0,0 1\nv1,0 1\nv2,0\nv3,2 0\ntest,3 4\n")
    (tmp_path / "vocabulary.csv").write_text(VOCABULARY)
    (tmp_path / "some.csv").write_text("Index,Name\n1,B\n0,A\n2,C\n")
    (tmp_path / "ids.txt").write_text("test\n\nabsent\n")
    frames = np.zeros((1, 1152), np.uint8)
    records = [encode_frames("r0", frames, [2, 0]), encode_frames("test", frames, [3, 4])]
    write_records(tmp_path / "part0.tfrecord", records)
    return tmp_path


def run(folder: Path, *options: str) -> LabelCorrelation:
    out = folder / "correlation.npz"
    cooccur.main(["--out", str(out), "--num-classes", "5", *options])
    return LabelCorrelation.load(out)


def test_tables_and_records_count_together(folder: Path, capsys: pytest.CaptureFixture) -> None:
    correlation = run(
        folder, "--labels", f"{folder}/lists.csv", "--data", f"{folder}/part*",
        "--exclude-ids", f"{folder}/ids.txt", "--vocabulary", f"{folder}/vocabulary.csv",
    )  # fmt: skip
    assert correlation.related(1) == [(0, 1.0)]
    assert correlation.related(2) == [(0, 1.0)]
    assert correlation.related(0) == []  # 2 of 5, below the default 0.5
    assert correlation.related(3) == []
    assert capsys.readouterr().out.splitlines() == [
        "videos: 5, left out: 2",
        "labels: 9 of 3 classes",
        "pairs: 4, different: 2",
        "relations of at least 0.5: 2",
        "  b -> a: 1.00 of 2 videos",
        "  c -> a: 1.00 of 2 videos",
        f"correlation: {folder}/correlation.npz",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "{}"], 5),
        (["--data", "{}", "--num_classes", "9"], 9),
        (["--labels", "{}/lists.csv", "--vocabulary", "{}/vocabulary.csv"], 5),
        (["--labels", "{}/lists.csv"], 3862),
    ],
    ids=["collection", "option", "vocabulary", "table"],
)
def test_the_number_of_classes_is_that_of_the_data(
    folder: Path, options: list[str], expected: int
) -> None:
    out = folder / "correlation.npz"
    cooccur.main(["--out", str(out), *(word.format(folder) for word in options)])
    assert LabelCorrelation.load(out).num_classes == expected


def test_records_that_do_not_say_their_classes(folder: Path) -> None:
    (folder / "vocabulary.csv").unlink()
    FeatureSet((("clip", 1152),)).write(folder / "features.json")
    schema = FrameSchema((("clip", 1152),))
    record = encode_frames("r0", np.zeros((1, 1152), np.uint8), [2, 0], None, schema)
    write_records(folder / "part0.tfrecord", [record])
    with pytest.raises(UserError, match=r"vocabulary\.csv beside it .*; or give --num_classes$"):
        cooccur.main(["--out", f"{folder}/correlation.npz", "--data", str(folder)])


def test_damaged_records_and_ids_of_another_name(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    schema = FrameSchema(id_key="video_id")
    frames = np.zeros((1, 1152), np.uint8)
    records = [encode_frames(f"o{k}", frames, [2, 0], None, schema) for k in range(3)]
    write_records(folder / "old.tfrecord", records)
    data = bytearray((folder / "old.tfrecord").read_bytes())
    data[200] ^= 1
    (folder / "old.tfrecord").write_bytes(data)
    with pytest.raises(RecordError, match="record 0"):
        run(folder, "--data", f"{folder}/*.tfrecord")
    capsys.readouterr()
    run(folder, "--data", f"{folder}/*.tfrecord", "--on_error", "skip")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"records: skipped 1 record (the first: {folder}/old.tfrecord: rec")
    assert lines[1] == "videos: 4, left out: 0"


def test_classes_are_those_of_the_vocabulary(folder: Path, capsys: pytest.CaptureFixture) -> None:
    packed = folder / "lists.csv.gz"
    packed.write_bytes(gzip.compress((folder / "lists.csv").read_bytes()))
    correlation = run(
        folder, "--labels", str(packed), "--classes", f"{folder}/some.csv", "--threshold=0.5",
        "--min_support", "2", "--top", "1",
    )  # fmt: skip
    assert correlation.num_classes == 3
    assert correlation.related(0) == [(1, 1.0)]  # B -> A
    assert correlation.related(1) == [(0, 0.5)]
    assert correlation.related(2) == []  # seen once
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "->" in line] == ["  B -> A: 1.00 of 2 videos"]


def test_the_prior_is_fitted_to_all_classes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "lists.csv").write_text("v0,0 1\nv1,0 1\nv2,0\nv3,2\n" * 10)
    options = ["--labels", f"{folder}/lists.csv", "--classes", f"{folder}/some.csv"]
    fitted = run(folder, *options, "--threshold", "0", "--prior", "fit")
    line = capsys.readouterr().out.splitlines()[3]
    counted, _ = cooccur.count(
        cooccur.CooccurConfig("", labels=f"{folder}/lists.csv", num_classes=5)
    )
    strength = prior_strength(counted)
    assert line == f"base rates are worth {strength:.3g} videos"
    expected = (20 + strength * 0.75) / (20 + strength)
    assert fitted.related(0) == [(1, pytest.approx(expected, rel=1e-6))]
    given = run(folder, *options, "--threshold", "0", "--prior", "4")
    assert given.related(0) == [(1, pytest.approx(23 / 24))]
    with pytest.raises(UserError, match="prior: expected at least 0, found -1"):
        run(folder, *options, "--prior", "-1")


def test_errors_are_lines(folder: Path) -> None:
    with pytest.raises(UserError, match="expected --labels or --data, found neither"):
        run(folder)
    with pytest.raises(FileNotFoundError, match=r"absent\*: no file matches"):
        run(folder, "--data", f"{folder}/absent*")
    with pytest.raises(
        DataError, match=r"lists\.csv: labels: .*0\.\.2, found 3 in video 4 \(--num"
    ):
        run(folder, "--labels", f"{folder}/lists.csv", "--num_classes", "3")
    with pytest.raises(UserError, match=r"threshold: expected a number in \[0, 1\], found 2"):
        run(folder, "--labels", f"{folder}/lists.csv", "--threshold", "2")
    options = ["--labels", f"{folder}/two.csv", "--num_classes", "2"]
    (folder / "two.csv").write_text("v,0 1\n")
    with pytest.raises(UserError, match=r"--classes .*some.csv: expected 0\.\.1, found 2"):
        run(folder, *options, "--classes", f"{folder}/some.csv")
    assert not (folder / "correlation.npz").exists()


@pytest.mark.parametrize(
    "ids",
    [
        b"test\r\n",
        b"v9\rtest\r",
        b'"test"\n',
        b'"test","3 4"\n',
        b" test ,3\n",
        b"\xef\xbb\xbftest\n",
        "test\n".encode("utf-16"),
        "\ufefftest,3\n".encode("utf-16-be"),
        gzip.compress(b"v9,1\ntest,3 4\n"),
    ],
)
def test_lists_of_ids_are_read_as_label_lists_are(folder: Path, ids: bytes) -> None:
    """A label list as its own list of exclusions leaves nothing: both are read in the same way."""
    (folder / "ids.txt").write_bytes(ids)
    excluded = cooccur.read_ids(folder / "ids.txt")
    assert excluded in ({"test"}, {"test", "v9"})
    for lists in (b"test,3 4\nv0,1\n", b'"test","3 4"\rv0,1\r', b" test ,3\nv0,1\n"):
        (folder / "lists.csv").write_bytes(lists)
        config = cooccur.CooccurConfig(
            "", labels=f"{folder}/lists.csv", exclude_ids=f"{folder}/ids.txt"
        )
        counted, left_out = cooccur.count(config)
        assert (counted.num_videos, left_out) == (1, 1)


def test_a_table_of_nothing(folder: Path) -> None:
    (folder / "empty.csv").touch()
    with pytest.raises(DataError, match=r"empty\.csv: expected videos, found none"):
        run(folder, "--labels", f"{folder}/empty.csv")
    assert not (folder / "correlation.npz").exists()


def test_a_list_that_excludes_nothing_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ids.txt").write_text("absent\nmissing\n")
    run(folder, "--labels", f"{folder}/lists.csv", "--exclude_ids", f"{folder}/ids.txt")
    line = f"--exclude_ids {folder}/ids.txt: none of its 2 ids is in the data"
    assert line in capsys.readouterr().out.splitlines()


def test_real_label_sets(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "yt8m"
    out = tmp_path / "correlation.npz"
    cooccur.main(
        ["--labels", str(data / "labelsets.csv.gz"), "--out", str(out), "--threshold", "0.5",
         "--classes", str(data / "segment_vocabulary.csv")]
    )  # fmt: skip
    correlation = LabelCorrelation.load(out)
    assert correlation.num_classes == 1000
    assert len(correlation.values) > 1000
    assert correlation.values.min() >= 0.5
