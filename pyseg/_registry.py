"""Registries: what can be chosen by name, pyseg's own entries and those of plugins alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from pyseg.errors import ArgumentError

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """Entries by name, in the order in which they were registered.

    Args:
        kind: What an entry is called in messages.

    Attributes:
        every: All registries.

    Example:
        >>> heads = Registry("head")
        >>> heads.add("logistic", object)
        >>> heads.find("logistics")
        Traceback (most recent call last):
        pyseg.errors.ArgumentError: head: expected one of logistic; found the unknown head ...
    """

    every: ClassVar[list[Registry[Any]]] = []

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        Registry.every.append(self)

    def add(self, name: str, entry: Entry) -> None:
        """Adds an entry under a name that is new.

        Raises:
            pyseg.errors.ArgumentError: It is not.
        """
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"name: expected the name of a {self.kind}, found {name!r}")
        if name in self:
            raise ArgumentError(
                f"name: expected the name of a new {self.kind}, found {name!r}, which is registered"
            )
        self[name] = entry

    def find(self, name: str, argument: str | None = None) -> Entry:
        """Returns the entry of a name.

        Args:
            name: The name.
            argument: What the message calls it; default: the kind.

        Raises:
            pyseg.errors.ArgumentError: There is none.
        """
        if not isinstance(name, str) or name not in self:
            raise ArgumentError(f"{argument or self.kind}: {unknown(self.kind, name, self)}")
        return self[name]


def unknown(kind: str, found: object, known: Iterable[str]) -> str:
    """Returns the rest of a message that a name is none of those that are known."""
    names = sorted(known)
    close = difflib.get_close_matches(str(found), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"expected one of {', '.join(names)}; found the unknown {kind} {found!r}{hint}"
