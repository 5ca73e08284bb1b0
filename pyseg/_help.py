"""The output of ``--help``: one line per option, or the full text of a requested one."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from pyseg._registry import suggestion
from pyseg.errors import UserError

_COMMON = {
    "config FILE": ("A YAML file of options", "; --print_config prints one"),
    "plugin MODULE,...": ("Modules to import first, for what they register", ""),
    "help NAME": ("Explains an option or a group", "; --help all: everything"),
    "version": ("Prints pyseg's version", ""),
}


@dataclass(frozen=True)
class _Option:
    name: str
    kind: Any
    default: Any
    text: str

    @property
    def usage(self) -> str:
        """The option with its possible values."""
        if self.kind in (bool, bool | None):
            return f"--[no_]{self.name}"
        if self.choices:
            return f"--{self.name} {{{','.join(self.choices)}}}"
        if get_origin(self.kind) is dict:
            return f"--{self.name}.NAME VALUE"
        kinds = {self.kind, *get_args(self.kind)}
        word = re.split(r"[._]", self.name)[-1].upper()
        return f"--{self.name} {'X' if float in kinds else 'N' if int in kinds else word}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have, where they are a few words."""
        if self.kind in (bool, bool | None):
            return ("true", "false")
        kinds = (self.kind, *get_args(self.kind))
        return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())

    @property
    def note(self) -> str:
        """The default in parentheses, unless the text contains it."""
        shown = self.default not in (None, False, MISSING, {}, []) and "default:" not in self.text
        return f" ({self.default})" if shown else ""


def describe(
    config_class: type, usage: str, description: str, several: Mapping[str, str], epilog: str | None
) -> str:
    """Returns the help of a command, with one line per option.

    `GROUPS` of their class, a mapping of titles to names, groups the options; those in no group are
    left to ``--help all``.

    Args:
        config_class: A dataclass of options.
        usage: The first line.
        description: A description of the command.
        several: Options that take several words, and their help.
        epilog: The last paragraph, if any.
    """
    width = _width()
    options = {option.name: option for option in _options(config_class)}
    docs = _docs(config_class)
    groups = getattr(config_class, "GROUPS", {"Options": [f.name for f in fields(config_class)]})
    lines = [f"usage: {usage}", "", *textwrap.wrap(description, width)]
    for title, names in groups.items():
        rows = {}
        for name in names:
            if name in several:
                rows[f"{name} {name.upper()} ..."] = _first(several[name]), ""
            elif name in options:
                rows[options[name].usage[2:]] = _first(options[name].text), options[name].note
            else:  # a group
                members = [key for key in options if key.startswith(f"{name}.")]
                rows[f"{name}.OPTION"] = _first(docs[name]), f": {len(members)} options"
        lines += ["", f"{title}:", *_rows(rows, width)]
    lines += ["", "All commands:", *_rows(_COMMON, width)]
    if epilog:
        lines += ["", *textwrap.wrap(epilog, width)]
    return "\n".join(lines)


def explain(config_class: type, topic: str) -> str:
    """Returns the full help of an option, of a group of options, or of ``all``.

    Raises:
        pyseg.errors.UserError: There is no such option.
    """
    width = _width()
    name = topic.lstrip("-").replace("-", "_")
    options = list(_options(config_class))
    found = [
        option
        for option in options
        if name == "all" or option.name == name or option.name.startswith(f"{name}.")
    ]
    if not found:
        names = [option.name for option in options] + [f.name for f in fields(config_class)]
        hint = suggestion(name, names, "{}")
        raise UserError(f"--help {topic}: expected an option, a group of options, or all{hint}")
    indent = " " * 6
    lines = []
    for option in found:
        text = option.text.rstrip(".") + "." + option.note
        lines += [f"  {option.usage}"]
        lines += textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def choices(config_class: type) -> dict[str, tuple[str, ...]]:
    """Returns the values that options may have, by name, where they are a few words."""
    return {option.name: option.choices for option in _options(config_class)}


def _rows(rows: Mapping[str, tuple[str, str]], width: int) -> Iterator[str]:
    """Yields a line for each row; a text that does not fit before its note is shortened."""
    column = 30
    for usage, (text, note) in rows.items():
        left = f"  --{usage} ".ljust(column)
        room = max(20, width - len(left) - len(note))
        yield left + textwrap.shorten(text, room, placeholder=" ...") + note


def _first(text: str) -> str:
    """Returns the first clause of a help text."""
    return re.split(r"[;:.](?:\s|$)", text, maxsplit=1)[0]


def _options(config_class: type, prefix: str = "", given: object = None) -> Iterator[_Option]:
    """Yields the options of a dataclass and of its nested dataclasses."""
    hints, docs = get_type_hints(config_class), _docs(config_class)
    for field in fields(config_class):
        default = _default(field) if given is None else getattr(given, field.name)
        if is_dataclass(hints[field.name]):
            group = cast(type, hints[field.name])
            yield from _options(group, f"{prefix}{field.name}.", default)
        else:
            name = prefix + field.name
            yield _Option(name, hints[field.name], default, docs.get(field.name, ""))


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _docs(config_class: type) -> dict[str, str]:
    """Returns the docstring's text on each field."""
    arguments = re.search(r"Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(config_class) or "", re.DOTALL)
    entries = re.split(r"^ {4}(\w+): ", arguments[1] if arguments else "", flags=re.MULTILINE)
    return {
        name: " ".join(text.split())
        for name, text in zip(entries[1::2], entries[2::2], strict=True)
    }
