"""Both readers on a few generated records; compare_readers.py itself takes more."""

from __future__ import annotations

import numpy as np
import pytest

from pyseg import _ext
from pyseg.data.records import reference

from . import compare_readers

pytestmark = pytest.mark.skipif(_ext.records is None, reason=f"no _records: {_ext.RECORDS_REASON}")


def test_both_readers_agree() -> None:
    counts = compare_readers.compare(400)
    assert counts.refused > 100
    assert counts.reads - counts.refused > 100


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_classes", lambda numbers, _: np.array(numbers[:1], np.int64))
    with pytest.raises(AssertionError, match=r"C\+\+: .*\nPython: "):
        compare_readers.compare(100)
