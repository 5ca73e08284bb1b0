"""Both engines, and Google's protobuf to compare with."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyseg import _ext
from pyseg.data.records import engine as engines

# PYSEG_FAULTS=full runs the fault tests at full length: minutes instead of seconds.
FULL = os.environ.get("PYSEG_FAULTS") == "full"
needs_native = pytest.mark.skipif(
    _ext.records is None, reason=f"no _records: {_ext.RECORDS_REASON}"
)
NATIVE = pytest.param(
    "native",
    marks=needs_native,
)


@pytest.fixture(params=[NATIVE, "reference"])
def engine(request, monkeypatch):
    """Every test that uses it runs with both engines."""
    if request.param == "reference":
        monkeypatch.setattr(_ext, "records", None)
    return engines.engine()


@contextlib.contextmanager
def using(name: str):
    """The same for hypothesis, which wants no fixture that lasts for one example."""
    kept = _ext.records
    _ext.records = kept if name == "native" else None
    try:
        yield
    finally:
        _ext.records = kept


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "file.tfrecord") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


# TensorFlow's example.proto and feature.proto: messages, and per field its name, number and type.
MESSAGES = {
    "BytesList": [("value", 1, "repeated bytes")],
    "FloatList": [("value", 1, "repeated float")],
    "Int64List": [("value", 1, "repeated int64")],
    "Feature": [
        ("bytes_list", 1, "oneof BytesList"),
        ("float_list", 2, "oneof FloatList"),
        ("int64_list", 3, "oneof Int64List"),
    ],
    "Features": [("feature", 1, "map Feature")],
    "FeatureList": [("feature", 1, "repeated Feature")],
    "FeatureLists": [("feature_list", 1, "map FeatureList")],
    "Example": [("features", 1, "one Features")],
    "SequenceExample": [("context", 1, "one Features"), ("feature_lists", 2, "one FeatureLists")],
}


@pytest.fixture(scope="module")
def protobuf():
    """Those messages as classes of Google's protobuf.

    In a pool of their own: the packages that bring them cannot share one process.
    """
    pytest.importorskip("google.protobuf", reason="protobuf comes with tensorboard")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="p", syntax="proto3")

    def add_field(message, name, number, description):
        count, kind = description.split()
        field = message.field.add(name=name, number=number)
        field.label = field.LABEL_REPEATED if count in ("repeated", "map") else field.LABEL_OPTIONAL
        if count == "oneof":
            field.oneof_index = 0
        if count == "map":  # repeated entries of a key and a value
            entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
            entry.options.map_entry = True
            add_field(entry, "key", 1, "one string")
            add_field(entry, "value", 2, f"one {kind}")
            kind = f"{message.name}.{entry.name}"
        if kind.islower():
            field.type = getattr(field, f"TYPE_{kind.upper()}")
        else:
            field.type, field.type_name = field.TYPE_MESSAGE, f".{file.package}.{kind}"

    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        if any(description.startswith("oneof") for _, _, description in fields):
            message.oneof_decl.add(name="kind")
        for field in fields:
            add_field(message, *field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return SimpleNamespace(
        **{name: message_factory.GetMessageClass(find(f"p.{name}")) for name in MESSAGES}
    )
