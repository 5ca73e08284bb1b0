"""Registries of what can be chosen by name; pyseg and plugins add entries in the same way."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

from pyseg.errors import ArgumentError

Entry = TypeVar("Entry")
Make = TypeVar("Make", bound=Callable[..., Any])


class Registry(dict[str, Entry]):
    """Entries by name, in the order in which they were registered.

    Args:
        kind: The kind of its entries, for messages.

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
        """Adds an entry under a new name.

        Raises:
            pyseg.errors.ArgumentError: The name is taken or invalid.
        """
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"name: expected the name of a {self.kind}, found {name!r}")
        if name in self:
            raise ArgumentError(
                f"name: expected the name of a new {self.kind}, found {name!r}, which is registered"
            )
        self[name] = entry

    def register(
        self, name: str, entry_of: Callable[[Any], Entry] = lambda make: make
    ) -> Callable[[Make], Make]:
        """Returns a decorator that adds a class or function under a new name, and returns it.

        Args:
            name: The name.
            entry_of: Returns the entry of what is registered; it may refuse it.
        """

        def decorator(make: Make) -> Make:
            if not callable(make):
                raise ArgumentError(
                    f"{self.kind} {name}: expected a class or function, found {make!r}"
                )
            self.add(name, entry_of(make))
            return make

        return decorator

    def find(self, name: str, argument: str | None = None) -> Entry:
        """Returns the entry of a name.

        Args:
            name: The name.
            argument: The argument that the message names; default: the kind.

        Raises:
            pyseg.errors.ArgumentError: There is no such entry.
        """
        if not isinstance(name, str) or name not in self:
            raise ArgumentError(
                f"{argument or self.kind}: {unknown(self.kind, name, sorted(self))}"
            )
        return self[name]


def unknown(kind: str, found: object, known: Iterable[str]) -> str:
    """Returns a message, after the argument, about a name that is not among the known ones."""
    names = list(known)
    hint = suggestion(str(found), names, "{!r}")
    return f"expected one of {', '.join(names)}; found the unknown {kind} {found!r}{hint}"


def suggestion(found: str, known: Iterable[str], form: str) -> str:
    """Returns " (did you mean ...?)" with the closest of the known names, if one is close."""
    close = difflib.get_close_matches(found, list(known), n=1)
    return f" (did you mean {form.format(close[0])}?)" if close else ""


def check_known(argument: str, owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Checks that all given names are among an owner's arguments.

    Args:
        argument: The argument that holds the names, for the message.
        owner: What has the arguments.
        given: The names.
        known: The names of the arguments.

    Raises:
        pyseg.errors.ArgumentError: One is not.
    """
    for key in given:
        if key not in known:
            raise ArgumentError(f"{argument}: {unknown(f'argument of {owner}', key, known)}")


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of `make`; ``**more`` of a class adds those of its base."""
    every = inspect.signature(make).parameters
    own = {k: v for k, v in every.items() if v.kind not in (v.VAR_KEYWORD, v.VAR_POSITIONAL)}
    passes_on = any(value.kind is value.VAR_KEYWORD for value in every.values())
    if passes_on and isinstance(make, type):
        own |= {k: v for k, v in parameters(make.__mro__[1]).items() if k not in own}
    return own


_KINDS = {
    "None": type(None),
    "bool": bool,
    "int": Integral,
    "float": Real,
    "str": str,
    "Literal": str,
}


def check_types(make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Checks the types of arguments that take numbers or text.

    Raises:
        pyseg.errors.ArgumentError: One has another type; the message names the argument.
    """
    for name, parameter in parameters(make).items():
        kinds = re.findall(r"\w+", re.sub(r"\[.*?\]", "", str(parameter.annotation)))
        if name not in arguments or not kinds or not _KINDS.keys() >= set(kinds):
            continue
        value = arguments[name]
        fits = isinstance(value, tuple(_KINDS[kind] for kind in kinds))
        if not fits or (isinstance(value, bool) and "bool" not in kinds):
            raise ArgumentError(f"{name}: expected {' or '.join(kinds)}, found {value!r}")
