"""What the documentation names is there, and its examples run."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
from pathlib import Path

import pytest

from pyseg import models

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS = [
    f"pyseg.{name}"
    for name in ("cooccur", "data", "evaluate", "models", "predict", "report", "reproduce", "train")
]
OTHERS = {"pdb", "keep-memory", "memory", "only"}  # of pytest, benchmarks and long tests
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """Returns the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a page one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@every_page
def test_files_are_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"(?:pyseg|csrc|tests|benchmarks|examples|docs|cmake)/[\w./]*\.\w+", text)
    generated = re.compile(r"build/|docs/_build|benchmarks/results/")
    missing = [n for n in named if not generated.search(n) and not (ROOT / n).is_file()]
    assert not missing


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@functools.cache
def options(module: str) -> set[str]:
    """Returns the options that a command's help lists."""
    main = getattr(importlib.import_module(module), "main", None)
    main = main or importlib.import_module(f"{module}.__main__").main
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        main(["download", "--help"] if module == "pyseg.data" else ["--help"])
    presets = (models.options(name) for name in models.names())
    return {
        *re.findall(r"--[\w.]+", output.getvalue()),
        *(f"--overrides.{option}" for of_preset in presets for option in of_preset),
    }


@every_page
def test_commands_have_these_options(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    wrong = [
        (module, option)
        for module, words in re.findall(r"-m (pyseg\.\w+)( [^`\n&#]*)", text)
        for option in re.findall(r" --([a-z][\w.-]*)", words)
        if f"--{option.replace('-', '_')}" not in options(module)
    ]
    assert not wrong


@every_page
def test_options_named_alone_are_some_commands(page: Path) -> None:
    every = set().union(*map(options, COMMANDS))
    named = re.findall(r"`--([a-z][\w.-]*)[^`]*`", page.read_text())
    assert {name for name in named if f"--{name.replace('-', '_')}" not in every} <= OTHERS
