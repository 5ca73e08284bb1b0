"""The extras of pyseg's distribution, and the message where one is not installed."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from pyseg import _build
from pyseg.errors import UserError


def install_command(extra: str) -> str:
    """Returns the command that adds ``extra`` to this installation."""
    if _build.INSTALLED:
        return f"pip install '{_build.DISTRIBUTION}[{extra}]'"
    checkout = _build.PACKAGE.parent
    folder = "." if checkout == Path.cwd() else checkout
    return f"pip install -e '{folder}[{extra}]'"


@contextlib.contextmanager
def requires(extra: str, what: str) -> Iterator[None]:
    """Turns a failed import in its block into the advice to install an extra.

    Args:
        extra: The extra that the imported packages belong to.
        what: What they are needed for, for the message.

    Raises:
        pyseg.errors.UserError: One of them is not installed, or fails when imported.
    """
    try:
        yield
    except ImportError as error:
        install = install_command(extra)
        upgrade = f"; newer versions may be there: {install} --upgrade"
        raise _useless(error, what, "a package that", install, upgrade) from error


@contextlib.contextmanager
def requires_package(package: str, what: str, install: str | None = None) -> Iterator[None]:
    """Turns a failed import of a package that no extra installs into the advice to install it.

    Args:
        package: The package that the block imports.
        what: What it is needed for, for the message.
        install: Its name for pip; default: the package's.

    Raises:
        pyseg.errors.UserError: It is missing, or fails when imported.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        advice = f"pip install {install or package}"
        raise _useless(error, what, f"{package}, which", advice) from error


def _useless(
    error: Exception, what: str, package: str, install: str, upgrade: str = ""
) -> UserError:
    """Returns the error about a package that is missing, or fails when imported."""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return UserError(f"{what} needs {error.name}: {install} ({error})")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{what} needs {package} is installed but fails when imported: {reason}{upgrade}"
    )


def find_module(name: str) -> ModuleType | None:
    """Returns a module by its name, which may lie in the working folder; None: there is none.

    Raises:
        ModuleNotFoundError: The module exists, but imports a missing one.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    if not {"", os.getcwd()} & set(sys.path):  # as in the console script
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return None
