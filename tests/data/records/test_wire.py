"""Messages are parsed as Google's protobuf parses them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from pyseg.data.records.wire import Message, parse_feature

from .conftest import FULL
from .strategies import messages


def plain(data: bytes, spans) -> tuple:
    """A feature as plain values; floats as their bits."""
    value = parse_feature(data, spans)
    floats = b"".join(data[start:end] for start, end in value.floats)
    return value.kind, [data[start:end] for start, end in value.strings], floats, value.ints


@settings(max_examples=1000 if FULL else 100, deadline=None)
@given(messages)
def test_reference_parses_as_protobuf_does(protobuf, data):
    def expected(feature) -> tuple:
        return (
            (None, "bytes_list", "float_list", "int64_list").index(feature.WhichOneof("kind")),
            list(feature.bytes_list.value),
            np.array(feature.float_list.value, "<f4").tobytes(),
            list(feature.int64_list.value),
        )

    theirs = protobuf.SequenceExample.FromString(data)
    ours = Message.parse(data)
    assert {name.decode(): plain(data, spans) for name, spans in ours.context.items()} == {
        name: expected(feature) for name, feature in theirs.context.feature.items()
    }
    assert {
        name.decode(): [plain(data, [span]) for span in ours.frames(name)] for name in ours.lists
    } == {
        name: [expected(feature) for feature in value.feature]
        for name, value in theirs.feature_lists.feature_list.items()
    }
