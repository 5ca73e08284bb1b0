"""Unusual and damaged records, for hypothesis."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from .encoding import field, rated_parts, varint


@st.composite
def features(draw, kind):
    """A feature of the kind, its values packed or not, split over several occurrences."""
    if kind == 1:
        values = draw(st.lists(st.binary(max_size=4), max_size=3))
        encoded = [field(1, value) for value in values]
    elif kind == 2:
        values = draw(st.lists(st.floats(width=32), max_size=5))
        encoded = [b"\x0d" + struct.pack("<f", value) for value in values]
        if draw(st.booleans()):
            encoded = [field(1, b"".join(item[1:] for item in encoded))]
    else:
        values = draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
        encoded = [b"\x08" + varint(value) for value in values]
        if draw(st.booleans()):
            encoded = [field(1, b"".join(item[1:] for item in encoded))]
    cut = draw(st.integers(0, len(encoded)))
    parts = [b"".join(encoded[:cut]), b"".join(encoded[cut:])]
    return b"".join(field(kind, part + draw(unknown)) for part in parts)


any_feature = st.integers(1, 3).flatmap(features)
# Fields that no schema knows, of every wire type. (Field 1 in another wire type is unknown, too.)
unknown = st.sampled_from(
    [b""] * 6
    + [
        b"\x78\x01",
        b"\x79" + bytes(8),
        b"\x7a\x03abc",
        b"\x7d" + bytes(4),
        b"\x7b\x7c",
        b"\x7b\x08\x01\x83\x01\x84\x01\x12\x01x\x7c",
        b"\x0b\x0c",
    ]
)


@st.composite
def map_fields(draw, names, value):
    """Entries of a map: any order, some twice, key or value missing, after each other or split."""
    entries = []
    for name in draw(st.lists(st.sampled_from(names), max_size=6)):
        parts = [field(1, name.encode())] * draw(st.sampled_from([0, 1, 1, 1, 1, 2]))
        parts += [field(2, draw(value)) for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2])))]
        # No unknown fields in here: protobuf implementations differ in whether they drop the entry.
        entries.append(field(1, b"".join(draw(st.permutations(parts)))))
    return b"".join(entries)


feature_lists = st.lists(any_feature, max_size=3).map(
    lambda items: b"".join(field(1, item) for item in items)
)
NAMES = ["id", "labels", "a", "segment_scores"]
messages = st.lists(
    st.one_of(
        map_fields(
            NAMES, st.one_of(any_feature, st.tuples(any_feature, any_feature).map(b"".join))
        ).map(lambda content: field(1, content)),
        map_fields(["rgb", "audio", "b"], feature_lists).map(lambda content: field(2, content)),
        unknown.filter(lambda content: content[:1] != b"\x0b"),
    ),
    max_size=4,
).map(b"".join)


@st.composite
def shuffled_records(draw):
    """A good record, written in an unusual way."""
    frames = draw(st.integers(1, 4))
    context, lists = rated_parts([0, 1], [5, 6], [0, 1], frames=frames)
    context["labels"] = b"".join(field(3, b"\x08" + varint(n)) for n in (300, 4)) + draw(unknown)
    context["segment_scores"] = field(2, b"".join(b"\x0d" + struct.pack("<f", x) for x in (0, 1)))
    context["spare"] = draw(any_feature)
    lists["spare"] = [draw(any_feature)]
    lists["rgb"] = [draw(unknown) + item for item in lists["rgb"]]
    parts = [(1, name, value) for name, value in context.items()]
    for name, items in lists.items():
        whole = b"".join(field(1, item) + draw(unknown) for item in items)
        parts.append((2, name, whole))
    out = b""
    for number, name, value in draw(st.permutations(parts)):
        key, half = field(1, name.encode()), draw(st.booleans())
        stale = field(1, key + field(2, b"")) if draw(st.booleans()) else b""
        body = field(2, value) + key if half else draw(unknown) + key + field(2, value)
        out += field(number, stale + field(1, body)) + draw(unknown)
    return frames, out


@st.composite
def mutated(draw, payloads):
    """A record with some bytes changed, inserted or removed."""
    data = bytearray(draw(payloads))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["set", "insert", "remove", "cut", "repeat"]))
        if change == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif change == "insert":
            data[at:at] = draw(st.binary(max_size=4))
        elif change == "remove":
            del data[at : at + draw(st.integers(1, 4))]
        elif change == "cut":
            del data[at:]
        elif change == "repeat":
            data += data[at:]
    return bytes(data)
