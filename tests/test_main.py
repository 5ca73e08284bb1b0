"""The console script ``pyseg``: one door to all commands."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path

import pytest

import pyseg
from pyseg import __main__ as door
from pyseg.errors import UserError


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_commands_are_listed(words: list[str], capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pyseg", *words])
    door.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: pyseg COMMAND [--option VALUE ...]"
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(door.COMMANDS)


@pytest.mark.parametrize("command", door.COMMANDS)
def test_each_command_is_a_module_that_can_be_run(command: str, capsys, monkeypatch) -> None:
    assert importlib.util.find_spec(f"pyseg.{command}") is not None
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pyseg", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert ended.value.code == 0
    assert f"usage: pyseg {command}" in capsys.readouterr().out


def test_version(capsys) -> None:
    door.main(["--version"])
    assert capsys.readouterr().out == f"pyseg {pyseg.__version__}\n"


def test_an_unknown_command(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pyseg"])
    with pytest.raises(UserError, match=r"trian: expected .*unknown command .* mean 'train'"):
        door.main(["trian"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pyseg tr", ["train"]),
        ("pyseg train --pretrain.learn", ["--pretrain.learning_rate"]),
        ("pyseg evaluate --on_error ", ["raise", "skip"]),
    ],
)
def test_shells_complete(line: str, expected: list[str], tmp_path: Path, python) -> None:
    pytest.importorskip("argcomplete")
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    files = {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"), "_ARGCOMPLETE_IFS": "\n"}
    done = python("-m", "pyseg", **asked, **files)
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "out").read_text().split("\n")
    assert [word.strip() for word in found] == expected


def test_the_script_is_installed() -> None:
    [script] = importlib.metadata.entry_points(group="console_scripts", name="pyseg")
    assert script.load() is door.console
