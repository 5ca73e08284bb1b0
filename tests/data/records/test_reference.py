"""The native reader and the one in Python agree, in errors too."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyseg import _ext
from pyseg.data.records import (
    ReadReport,
    encode_video,
    read_frames,
    read_videos,
    reference,
)
from pyseg.data.records import engine as engines

from .conftest import FULL, NATIVE, needs_native, using
from .encoding import (
    SMALL,
    TINY,
    feature_map,
    field,
    framed,
    outcome,
    rated_parts,
    same,
    sample_frames,
    sequence,
    video_parts,
)
from .strategies import messages, mutated, shuffled_records

# Every example writes its own file: the folder may be that of the example before.
examples = functools.partial(
    settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", [NATIVE, "reference"])
@examples(max_examples=60)
@given(example=shuffled_records())
def test_unusual_encodings_of_good_records(tmp_path, name, example):
    frames, payload = example
    path = tmp_path / "unusual"
    path.write_bytes(framed(payload))
    with using(name):
        [record] = read_frames(path, SMALL, report=ReadReport())
    assert record.id == "06xy"
    assert record.labels.tolist() == [300, 4]
    assert record.frames.tolist() == [
        [*range(6 * t, 6 * t + 6), *range(3 * t, 3 * t + 3)] for t in range(frames)
    ]
    kept = slice(None) if frames > 1 else slice(1)
    assert record.ratings.starts.tolist() == [0, 1][kept]
    assert record.ratings.scores.tolist() == [0, 1][kept]


def check_engines_agree(path: Path, read, *arguments, **options) -> None:
    results = []
    for name in ("native", "reference"):
        with using(name):
            report = ReadReport()
            results.append((outcome(read, path, *arguments, report=report, **options), report))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@needs_native
@examples(max_examples=2000 if FULL else 300)
@given(
    payload=mutated(
        st.one_of(
            messages,
            shuffled_records().map(lambda example: example[1]),
            st.sampled_from(sample_frames()),
            st.just(sequence(*rated_parts([0, 5, 9, 5], [1, 2, 3, 2], [1, 0, 1, 0.5], 10))),
        )
    ),
    max_frames=st.sampled_from([None, 1, 7]),
    extra=st.sampled_from([(), ("a", "labels"), ("spare",)]),
)
def test_engines_agree_on_frames(tmp_path, payload, max_frames, extra):
    path = tmp_path / "mutated"
    path.write_bytes(framed(payload))
    check_engines_agree(path, read_frames, SMALL, max_frames=max_frames, context_keys=extra)


@needs_native
@examples(max_examples=1000 if FULL else 150)
@given(
    payloads=st.lists(
        mutated(
            st.one_of(
                messages,
                st.just(field(1, feature_map(video_parts()))),
                st.just(encode_video("größe", np.arange(5), [1, 300], TINY)),
            )
        ),
        min_size=1,
        max_size=4,
    ),
    on_error=st.sampled_from(["raise", "skip"]),
)
def test_engines_agree_on_videos(tmp_path, payloads, on_error):
    path = tmp_path / "mutated"
    path.write_bytes(framed(*payloads))
    check_engines_agree(path, read_videos, TINY, block=2, on_error=on_error)


@needs_native
@examples(max_examples=1000 if FULL else 150)
@given(
    data=mutated(st.just(framed(*sample_frames(3)))),
    compress=st.booleans(),
    on_error=st.sampled_from(["raise", "skip"]),
    shard=st.sampled_from([(0, 1), (0, 2), (1, 2)]),
)
def test_engines_agree_on_framing(tmp_path, data, compress, on_error, shard):
    path = tmp_path / "mutated"
    path.write_bytes(gzip.compress(data, 1) if compress else data)
    check_engines_agree(path, read_frames, SMALL, on_error=on_error, shard=shard)


def test_without_the_native_module_the_reference_is_used(monkeypatch):
    monkeypatch.setattr(_ext, "records", None)
    assert engines.engine() is reference
