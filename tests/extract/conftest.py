"""Videos whose frames show their number."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("av")


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three videos at 10 frames a second: of 0 to 29, 100 to 154, and 500 to 519."""
    from tests.video.make_videos import Video

    folder = tmp_path_factory.mktemp("videos")
    for name, numbers in (("b", range(30)), ("c d", range(100, 155)), ("e", range(500, 520))):
        Video(numbers, rate=10).write(folder / f"{name}.mp4")
    return folder
