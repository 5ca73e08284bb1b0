"""Commands that end while they are being imported, with a stand-in for torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("ctrl_c")
ROOT = Path(__file__).resolve().parent.parent
CONSOLE = "from pyseg.__main__ import console\nconsole()\n"
TORCH = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(20)
"""


def ended(folder: Path, *words: str, torch: str = TORCH, **variables: str) -> tuple[int, str]:
    """Returns status and stderr of Python with that torch, by default one that is interrupted."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(torch)
    (folder / "pyseg").mkdir()
    (folder / "pyseg" / "pyseg").write_text(CONSOLE)
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": path} | variables,
        cwd=folder / "pyseg",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.stdout
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "pyseg.train", "--model", "mlp"],
        ["-mpyseg.extract", "-m", "other"],
        ["-m", "pyseg", "info"],
        ["pyseg", "info"],
    ],
    ids=" ".join,
)
def test_a_command_ends_with_a_line(words: list[str], tmp_path: Path) -> None:
    assert ended(tmp_path, *words) == (130, "pyseg: interrupted\n")


@pytest.mark.parametrize("words", [["-c", "import pyseg"], ["-m", "own"]], ids=" ".join)
def test_another_program_gets_the_exception(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import pyseg\n")
    status, errors = ended(tmp_path, *words)
    assert status not in (0, 130)
    assert "KeyboardInterrupt" in errors


def test_a_switch_with_a_wrong_value_ends_a_command_with_a_line(tmp_path: Path) -> None:
    assert ended(tmp_path, "-m", "pyseg.info", torch="", PYSEG_EXT="banana") == (
        1,
        "pyseg: error: PYSEG_EXT must be one of auto, 0, found 'banana'\n",
    )


def test_a_switch_with_a_wrong_value_raises_in_another_program(tmp_path: Path) -> None:
    status, errors = ended(tmp_path, "-c", "import pyseg", torch="", PYSEG_EXT="banana")
    assert status == 1
    assert "ImportError: PYSEG_EXT must be one of auto, 0, found 'banana'" in errors
