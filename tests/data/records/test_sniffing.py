"""What the first record of a file holds."""

from __future__ import annotations

import gzip

import pytest

from pyseg.data.records import (
    RecordError,
    sniff,
    sniffing,
)

from .encoding import framed, int_list, rated_parts, sequence


def test_sniff(engine, write, monkeypatch):
    context, lists = rated_parts([0], [1], [1], frames=3)
    context["empty"] = b""
    lists["none"] = []
    kind = sniff(write(gzip.compress(framed(sequence(context, lists)))))
    assert kind.compressed
    assert kind.lists == {"rgb": ("bytes", 6), "audio": ("bytes", 3), "none": ("nothing", 0)}
    assert kind.context["id"] == ("bytes", 4)
    assert kind.context["labels"] == ("int64", 2)
    assert kind.context["segment_scores"] == ("float", 1)
    assert kind.context["empty"] == ("nothing", 0)
    with pytest.raises(RecordError, match="record 0 at byte 0: malformed protobuf at byte 0"):
        sniff(write(framed(b"\x00")))
    monkeypatch.setattr(sniffing, "_MOST_FEATURES", 100)
    few = sequence({f"f{i}": int_list(i) for i in range(100)}, {})
    assert len(sniff(write(framed(few))).context) == 100
    many = few + sequence({}, {"one more": []})
    with pytest.raises(RecordError, match="record 0 at byte 0: expected at most 100 features"):
        sniff(write(framed(many)))
