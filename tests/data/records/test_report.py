"""Reports of what was skipped, dropped and overwritten."""

from __future__ import annotations

from pyseg.data.records import (
    ReadReport,
)


def test_reports_add_up():
    total = ReadReport()
    total += ReadReport(1, 2, 3, 4, 5, 6, None)
    total += ReadReport(10, 20, 30, 40, 50, 60, "first")
    total += ReadReport(0, 1, 0, 0, 0, 0, "second")
    assert total == ReadReport(11, 23, 33, 44, 55, 66, "first")
    assert ReadReport(records=3, cut_segments=1).summary() == ""
