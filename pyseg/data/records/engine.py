"""The choice of the reader: the native one, or the one in Python if that is not built.

Both offer `Fault`, `crc32c`, `Reader`, `FrameDecoder` and `VideoDecoder`, which
`pyseg.data.records.reference` documents. Paths, gzip and the handling of faults are the task of
`pyseg.data.records.file`.
"""

from __future__ import annotations

from typing import Any

from pyseg import _ext
from pyseg.data.records import reference


def engine() -> Any:
    """Returns the module that reads records."""
    return reference if _ext.records is None else _ext.records
