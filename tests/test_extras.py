from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyseg import _build
from pyseg._extras import install_command, requires, requires_package
from pyseg.errors import UserError

pytestmark = pytest.mark.skipif(_build.INSTALLED, reason="pyproject.toml is in a checkout only")
PYPROJECT = _build.PACKAGE.parent / "pyproject.toml"


def test_in_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(_build.PACKAGE.parent)
    assert install_command("report") == "pip install -e '.[report]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("report") == f"pip install -e '{_build.PACKAGE.parent}[report]'"


def test_from_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, "INSTALLED", True)
    assert install_command("report") == "pip install 'pyseg-video[report]'"


def test_name_is_that_of_the_distribution() -> None:
    assert re.findall('^name = "(.+)"', PYPROJECT.read_text(), re.M) == [_build.DISTRIBUTION]


def test_all_messages_use_install_command() -> None:
    sources = _build.PACKAGE.rglob("*.py")
    assert [p.name for p in sources if "pip install" in p.read_text()] == ["_extras.py"]


def test_a_package_that_fails_when_imported() -> None:
    said = "^--tracker x needs a package that is installed but fails when imported: cannot import "
    said += r"name 'service'; newer versions may be there: pip install .*\[mlflow\]' --upgrade$"
    with pytest.raises(UserError, match=said), requires("mlflow", "--tracker x"):
        raise ImportError("cannot import name 'service'")
    said = "^x needs timm, which is installed but fails when imported: libcudart$"
    with pytest.raises(UserError, match=said), requires_package("timm", "x"):
        raise OSError("libcudart\nmore")


def test_a_package_that_is_missing() -> None:
    said = r"^x needs no_such: pip install open_clip_torch \(No module named 'no_such'\)$"
    with (
        pytest.raises(UserError, match=said),
        requires_package("open_clip", "x", "open_clip_torch"),
    ):
        import no_such  # noqa: F401
