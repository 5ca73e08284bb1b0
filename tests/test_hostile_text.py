"""Hostile text tables, submissions, JSON, YAML and NumPy files.

A reader returns or raises one of pyseg's own errors, in one short line that names the file. The
examples are damaged copies of valid files: few by default, more with
``pytest --hypothesis-profile=long tests/test_hostile_text.py``.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg import models
from pyseg._containers import read_array, read_arrays, read_json, read_shapes
from pyseg.data import audioset, read_annotations, read_label_table, vocabulary
from pyseg.data._tables import read_ids
from pyseg.data.annotations.tables import read_video_labels
from pyseg.data.download import read_plan
from pyseg.errors import DataError, UserError
from pyseg.labels import LabelCorrelation
from pyseg.rate.answers import AnswerFile, settle
from pyseg.runs import Run
from pyseg.submission import judge, read_submission, read_truth


def packed(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def single(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


TRUTH = b'segment,class,score\nv1:0,3,1\n"v,2:5",3,0\nv1:5,4,0.25\n'
MODEL = {
    "format_version": models.FORMAT_VERSION, "name": "mlp", "num_classes": 2,
    "overrides": {"hidden_size": 8}, "tensors": {}, "class_names": ["a", "b"],
}  # fmt: skip
RATED = {"map": float("nan"), "map_all_classes": 0.5, "classes": 1, "all_classes": 2}
LOG = [
    {"stage": "pretrain", "step": 10, "loss": 0.5, "learning_rate": 1e-3},
    {"stage": "evaluate", "after": "pretrain", "step": 10, **RATED, "rated": 4, "positives": 2},
]
PLAN = {"files": {"trainaa.tfrecord": "0123456789abcdef0123456789abcdef"}}


def model(path: Path) -> object:
    path.rename(path.with_name("model.json"))
    return models.files._read_config(path.with_name("model.json"))


def run(path: Path) -> object:
    path.rename(path.with_name("config.yaml"))
    return Run(path.parent).config()


def log(path: Path) -> object:
    path.rename(path.with_name("metrics.jsonl"))
    return Run(path.parent).log()


def submission(path: Path) -> object:
    truth = path.with_name("truth.csv")
    truth.write_bytes(TRUTH)
    return list(judge(read_submission(path), read_truth(truth))[1].lines())


TASK = {
    "id": 1, "data": {"video": "v1.mp4"},
    "annotations": [
        {"result": [{"value": {"ranges": [{"start": 1, "end": 9}], "timelinelabels": ["a"]}}]}
    ],
}  # fmt: skip
VIA = (
    b"# Exported using VGG Image Annotator\n"
    b"# CSV_HEADER = metadata_id,file_list,temporal_segment_start,temporal_segment_end,metadata\n"
    b'"1_a","[""v1.mp4""]",1.5,2,"{""TEMPORAL-SEGMENTS"":""a""}"\n'
)
ELAN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<ANNOTATION_DOCUMENT>'
    b'<HEADER TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR MEDIA_URL="v1.mp4" TIME_ORIGIN="5"/>'
    b'</HEADER><TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="15"/>'
    b'<TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="40"/></TIME_ORDER>\n<TIER TIER_ID="a"><ANNOTATION>'
    b'<ALIGNABLE_ANNOTATION TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2"><ANNOTATION_VALUE>b'
    b"</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>\n"
)


def annotations(format: str) -> Callable[[Path], object]:
    return lambda path: read_annotations(path, format=format, fps=25, elan_classes="values")


def answers(path: Path) -> object:
    """Goes on with a file of answers, if that is possible."""
    file = AnswerFile(path, "ann")
    before = file.rows()
    file.add('v, "2"', 5, 10, "a;b", 1, "random")
    rows = AnswerFile(path, "bob").rows()
    assert rows[:-1] == before
    assert rows[-1][:7] == ('v, "2"', 5, 10, "a;b", 1, "ann", "random")
    return settle(rows)


class Reader(NamedTuple):
    read: Callable[[Path], object]
    good: bytes


READERS = {
    "label table": Reader(lambda p: list(read_label_table(p, exclude=["a"])), b'a,1 2\r\n"b",3\n'),
    "ids": Reader(read_ids, b'a\n"b,c",3\n'),
    "submission": Reader(submission, b'Class,Segments\n3,v1:0 v1:5\n4,"v,2:5"\n'),
    "truth": Reader(read_truth, TRUTH),
    "vocabulary": Reader(vocabulary.read_vocabulary, b'Index,Name\n1,"b, c"\n0,a\n'),
    "segment vocabulary": Reader(vocabulary.read_segment_vocabulary, b"Index,Name\n7,b\n2,a\n"),
    "class labels": Reader(
        audioset.read_class_labels, b'index,mid,display_name\n0,/m/a,"A, b"\n1,/m/b,B\n'
    ),
    "display names": Reader(audioset.read_display_names, b"/m/a\tA\n/m/b\tB\n"),
    "strong labels": Reader(
        audioset.read_strong_labels,
        b"segment_id\tstart_time_seconds\tend_time_seconds\tlabel\na_0\t0.5\t1.5\t/m/a\n",
    ),
    "ratings": Reader(
        annotations("ratings"), b'video;start;end;class;score\n"v;1";0;1.5;a;1\nv2;1;2;b;0\n'
    ),
    "answers": Reader(
        answers,
        b"video,start,end,class,score,rater,reason,time\n"
        b'"v,1",0,5,a,1,ann,random,2026\nv2,5,10,b,,bob,change,2026\nv2,5,10,b,0,bob,undo,2026\n',
    ),
    "answers of a person": Reader(answers, b'video;start;end;class;score\r\n"v;1";0;1.5;a;1\r\n'),
    "video labels": Reader(read_video_labels, b"video,class\nv1,a\n"),
    "audacity": Reader(annotations("audacity"), b"1.5\t2.5\ta\n\\\t1\t2\n3\t4\tb c\n"),
    "via": Reader(annotations("via"), VIA),
    "label studio": Reader(annotations("label_studio"), json.dumps([TASK]).encode()),
    "elan": Reader(annotations("elan"), ELAN),
    "any annotations": Reader(lambda p: read_annotations(p, fps=25), VIA),
    "json": Reader(read_json, json.dumps(MODEL).encode()),
    "model.json": Reader(model, json.dumps(MODEL).encode()),
    "config.yaml": Reader(
        run, b"data: sample\nmodel: mlp\noverrides:\n  hidden_size: 8\nseed: 1\n"
    ),
    "metrics.jsonl": Reader(log, "".join(json.dumps(e) + "\n" for e in LOG).encode()),
    "plan": Reader(lambda p: read_plan(p.read_bytes(), str(p)), json.dumps(PLAN).encode()),
    "array": Reader(read_array, single(np.arange(4.0))),
    "arrays": Reader(read_arrays, packed(a=np.arange(3), b=np.ones((2, 2), np.float32))),
    "shapes": Reader(read_shapes, packed(a=np.arange(3), b=np.ones((2, 2), np.float32))),
    "shape": Reader(read_shapes, single(np.arange(4.0))),
    "correlation": Reader(
        LabelCorrelation.load,
        packed(offsets=np.array([0, 1, 1]), columns=np.array([1]), values=np.array([0.5])),
    ),
}
# Strings that break readers, beside single bytes.
PIECES = [
    b'"', b",", b"\n", b"\r", b"\r\n", b"\t", b" ", b"\0", b":", b"-", b".", b"0", b"_",
    b"9" * 5000, b"9" * 20, b"1e999", b"NaN", b"Infinity", b"null", b"true", b"{}", b"[", b"]",
    b"[" * 100_000, b'{"a":' * 20_000, b"\\ud800", b"\xff", b"\xff\xfe", b"\xfe\xff",
    b"\xef\xbb\xbf", b"\x1f\x8b", b"\x1f\x8b\x08\0", b"PK\x03\x04", b"\x93NUMPY", b"\xc3",
    "\u2028\u0661".encode(), b"|O", b"<f8", b"99999999999", b"!!python/object:os.system", b"&a ",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Draws a valid file that was truncated, changed, repeated or packed, or any bytes."""
    data = good
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.sampled_from([0, 0, 1, 1, 4, 1000])))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=6) | st.just(data[begin:end] * 2))
        data = data[:begin] + piece + data[end:]
    form = draw(st.sampled_from(["plain"] * 4 + ["gzip", "cut", "flipped", "utf-16"]))
    if form == "utf-16":
        return data.decode("utf-8", "replace").encode("utf-16")
    if form != "plain":
        data = gzip.compress(data, 1)
        at = draw(st.integers(0, len(data) - 1))
        if form == "cut":
            data = data[:at]
        elif form == "flipped":
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    return data


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(READERS[name].good)
    assert READERS[name].read(path) is not None


@pytest.mark.parametrize("name", READERS)
def test_only_pyseg_errors_are_raised(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    quick = settings.default is not settings.get_profile("long")

    @settings(deadline=None, database=None, max_examples=25 if quick else 5_000)
    @given(damaged(reader.good))
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            path = Path(folder, "it")
            path.write_bytes(data)
            message = complaint(reader, path)
        if message is not None:
            assert folder in message
            assert "\n" not in message
            assert len(message) < 1000

    check()


def complaint(reader: Reader, path: Path) -> str | None:
    """Returns the message of a reader that refuses a file; any other exception is a bug."""
    try:
        reader.read(path)
    except (DataError, UserError) as error:
        return str(error)
    return None
