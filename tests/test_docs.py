"""The names in the documentation exist, and its examples run."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import pkgutil
import re
from pathlib import Path

import budget
import pytest

import pyseg
from pyseg import __main__ as door
from pyseg import models
from pyseg.data.__main__ import _COMMANDS
from pyseg.metrics import _device_keys
from pyseg.models.registry import _preset

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {path: path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = (
    "info",
    "cooccur",
    "data",
    "evaluate",
    "export",
    "extract",
    "models",
    "predict",
    "rate",
    "report",
    "reproduce",
    "train",
)
COMMAND = re.compile(rf"\bpyseg[. ]({'|'.join(COMMANDS)})\b( [^`\n&#]*)")
OTHERS = {"pdb", "keep_memory", "memory", "only"}  # options of pytest, benchmarks and long tests


@pytest.mark.parametrize(
    "page", sorted(page for page in TEXTS if PYTHON.search(TEXTS[page])), ids=lambda page: page.stem
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the examples of a page in order, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in PYTHON.findall(TEXTS[page]):
        exec(compile(block, str(page), "exec"), names)


def test_files_are_there() -> None:
    file = re.compile(r"(?<![\w/])(?:pyseg|csrc|tests|benchmarks|examples|docs|cmake)/[\w./]*\.\w+")
    named = {(page, name) for page, text in TEXTS.items() for name in file.findall(text)}
    assert len(named) > 50
    assert not [(page, name) for page, name in named if not (ROOT / name).is_file()]


def test_the_path_of_a_batch_lists_every_file_once() -> None:
    files = re.findall(r"^\| `([^`]+)` \|", TEXTS[ROOT / "docs" / "batch.md"], re.MULTILINE)
    assert len(files) > 20
    assert len(set(files)) == len(files)


def test_every_public_module_has_an_api_reference() -> None:
    documented = re.findall(r"automodule:: pyseg\.(\w+)$", "".join(TEXTS.values()), re.MULTILINE)
    names = {module.name for module in pkgutil.iter_modules(pyseg.__path__)}
    assert {name for name in names if not name.startswith(("_", "libpyseg"))} == set(documented)


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    released = re.findall(r"^## \[(\d.*)\] - (.+)$", TEXTS[ROOT / "CHANGELOG.md"], re.MULTILINE)
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [pyseg.__version__]
    assert re.findall(r"^date-released: (.+)$", citation, re.MULTILINE) == [released[0][1]]
    assert released[0][0] == pyseg.__version__


def test_the_budget_is_what_its_script_prints() -> None:
    text = TEXTS[ROOT / "docs" / "gpu.md"]
    assert f"\n\n{budget.report()}\n\n" in text
    assert f"when\n  {_device_keys._room(1000, 100_000):,} segments of 1,000 classes wait" in text


def test_environment_variables_are_documented() -> None:
    sources = "".join(path.read_text() for path in ROOT.glob("pyseg/**/*.py"))
    named = set(re.findall(r'"(PYSEG_[A-Z_]+)"', sources))
    assert "PYSEG_CACHE" in named
    table = TEXTS[ROOT / "docs" / "configuration.md"]
    assert not [name for name in named if f"| `{name}` |" not in table]


def test_every_command_is_in_the_table() -> None:
    table = TEXTS[ROOT / "docs" / "configuration.md"]
    listed = re.findall(r"^\| `pyseg ([a-z ]+)` \|.*\|$", table, re.MULTILINE)
    assert [*dict.fromkeys(words.split()[0] for words in listed)] == [*door.COMMANDS]
    assert [words for words in listed if " " in words] == [f"data {name}" for name in _COMMANDS]


def test_every_preset_is_in_the_table_of_models() -> None:
    listed = re.findall(
        r"^\| `([\w-]+)` \| [\d,]+ \|", TEXTS[ROOT / "docs" / "models.md"], re.MULTILINE
    )
    places = ("pyseg.models.", "pyseg.nn.")  # other tests may have registered presets of plugins
    own = [name for name in models.names() if _preset(name).make.__module__.startswith(places)]
    assert listed == sorted(own)


def test_notebooks_are_kept_without_outputs() -> None:
    notebooks = [*ROOT.glob("docs/**/*.ipynb")]
    assert notebooks
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]], path


def test_links_lead_somewhere() -> None:
    link = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
    named = {(page, target) for page, text in TEXTS.items() for target in link.findall(text)}
    assert len(named) > 50
    assert not [(page, target) for page, target in named if not (page.parent / target).exists()]


@functools.cache
def options(command: str) -> set[str]:
    """Returns the options that a command's help lists."""
    output = io.StringIO()
    doors = [["data", "download"], ["data", "import"]] if command == "data" else [[command]]
    with contextlib.redirect_stdout(output):
        for words, more in itertools.product(doors, ([], ["all"])):
            with contextlib.suppress(SystemExit):
                door.main([*words, "--help", *more])
    presets = (models.options(name) for name in models.names())
    overrides = {f"overrides.{option}" for of_preset in presets for option in of_preset}
    return overrides.union(re.findall(r"--(?:\[no_\])?([\w.]+)", output.getvalue()))


def known(option: str, listed: set[str]) -> bool:
    """Returns whether an option, or a group of options, is listed."""
    name = option.replace("-", "_").removeprefix("no_")
    name = re.sub(r"(loss_overrides)\..*", r"\1.NAME", name)
    return name in listed or any(other.startswith(f"{name}.") for other in listed)


def test_options_are_those_of_the_commands() -> None:
    every = OTHERS.union(*map(options, COMMANDS))
    for page, text in TEXTS.items():
        for command, words in COMMAND.findall(text.replace("\\\n", " ")):
            for option in re.findall(r" --([a-z][\w.-]*)", words):
                assert known(option, options(command)), (page, command, option)
        for option in re.findall(r"`--([a-z][\w.-]*)[^`]*`", text):
            assert known(option, every), (page, option)
