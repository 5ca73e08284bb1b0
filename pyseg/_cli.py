"""The base of all commands: typed options from the command line, and errors of one line.

A command's options are a dataclass; jsonargparse turns it into flags, YAML (``--config``) and
``--print_config``, with the help texts taken from its docstring.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.metadata
import io
import json
import logging
import math
import os
import re
import select
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from pyseg import __version__, _command, _help
from pyseg._extras import find_module
from pyseg._files import FULL, behind_links, why_not_a_file, write_file
from pyseg._urls import is_url, named
from pyseg.errors import ArgumentError, MissingFileError, PysegError, UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from jsonargparse import ArgumentParser, Namespace

Config = TypeVar("Config")

_LOCAL = frozenset(
    (
        *("out", "run", "resume", "init", "folder", "more", "like", "scores", "timeline", "export"),
        *("videos", "video_file", "frames_file", "ratings", "links"),
    )
)
"""Options that are paths of this machine, whatever the command; `--data` may be a URL."""


@contextlib.contextmanager
def option(name: str, value: object = None) -> Iterator[None]:
    """Turns an `ArgumentError` of the enclosed call into a `UserError` that names the option.

    Args:
        name: The option, whose value the call checks.
        value: Its value, for the message; None leaves it out.
    """
    try:
        yield
    except ArgumentError as error:
        _, named, rest = str(error).partition(": ")
        given = f"--{name}" if value is None else f"--{name} {value}"
        raise UserError(f"{given}: {rest if named else error}") from error


@contextlib.contextmanager
def option_group(prefix: str) -> Iterator[None]:
    """Turns an `ArgumentError`, which names the option, into a `UserError`.

    Args:
        prefix: The group of the option, such as "finetune.".
    """
    try:
        yield
    except ArgumentError as error:
        raise UserError(f"--{prefix}{error}") from error


@contextlib.contextmanager
def path_option(name: str) -> Iterator[None]:
    """Names the option in a `MissingFileError` of the enclosed call, whose message names the path.

    Args:
        name: The option, whose paths the call looks for.
    """
    try:
        yield
    except MissingFileError as error:
        raise MissingFileError(f"--{name} {error}") from error


def check_range(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Checks the value of an option; None is an option that is not given.

    Raises:
        pyseg.errors.ArgumentError: It is not in [least, most], or not finite.
    """
    if value is None or (least <= value <= most and abs(value) < math.inf):
        return
    text = f"at least {least:,}" if value < least or most == math.inf else f"at most {most:,}"
    if (least, most) == (0, 1):
        text = "a number in [0, 1]"
    raise ArgumentError(f"{name}: expected {text}, found {value}")


MOST_EXAMPLES = 1 << 20
"""The largest batch size; more is a typing error."""


def hide_secrets(config: DataclassInstance) -> None:
    """Replaces URLs in the options of a command by their names without passwords and signatures."""
    for field in fields(config):
        setattr(config, field.name, named(getattr(config, field.name)))


def check_above(name: str, value: float | None, bound: float) -> None:
    """Checks the value of an option; None is an option that is not given.

    Raises:
        pyseg.errors.ArgumentError: It is not above the bound, or not finite.
    """
    if value is not None and not bound < value < math.inf:
        raise ArgumentError(f"{name}: expected above {bound:g}, found {value}")


def check_in(name: str, path: str | None) -> None:
    """Checks before any work that the file of an option can be read.

    Args:
        name: The option.
        path: Its value; None if it is not given.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.UserError: It is a folder, or cannot be read.
    """
    if path is None:
        return
    if not os.path.exists(path):
        raise MissingFileError(f"--{name} {path}: no such file")
    if os.path.isdir(path):
        raise UserError(f"--{name} {path}: expected a file, found a folder")
    if not os.access(path, os.R_OK):
        raise UserError(
            f"--{name} {path}: expected a file that you may read, found one you may not"
        )


def check_out(name: str, path: str | None, **others: str | None) -> None:
    """Checks before any work that the file of an option can be written.

    Args:
        name: The option.
        path: Its value; None if it is not given.
        others: Options with other input or output files, from which it must differ.

    Raises:
        pyseg.errors.UserError: There is no such folder, or it cannot be written to.
    """
    if path is None:
        return
    for other, value in others.items():
        if value is not None and os.path.realpath(value) == os.path.realpath(path):
            raise UserError(f"--{name} {path}: expected another file than that of --{other}")
    if (wrong := why_not_a_file(path)) is not None:
        raise UserError(f"--{name} {path}: {wrong}")
    folder = behind_links(path).parent
    if not folder.is_dir():
        raise UserError(f"--{name} {path}: expected a folder {folder}, found none")
    _check_writable(name, path, folder)


def check_continued(name: str, path: str, **others: str | None) -> None:
    """Checks as `check_out` does, and that an existing file can be read and appended to.

    Raises:
        pyseg.errors.UserError: See `check_out`, or the file may not be read or written.
    """
    check_out(name, path, **others)
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
        raise UserError(
            f"--{name} {path}: expected a file that you may read and write, found one you may not"
        )


def check_out_folder(name: str, path: Path) -> None:
    """Checks before any work that the folder of an option exists or can be created.

    Raises:
        pyseg.errors.UserError: It is a file, or cannot be written to.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--{name} {path}: expected a folder, found a file {there}")
    _check_writable(name, path, there)


def _check_writable(name: str, path: object, folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--{name} {path}: the folder {folder} cannot be written to: {error.strerror}"
        ) from error


def program(module: str) -> str:
    """Returns the name of a module's command: its own, or as called through `pyseg.__main__`."""
    called = sys.argv[0] if sys.argv else ""
    return called if called.endswith(module.replace(".", " ")) else f"python -m {module}"


def make_parser(
    config_class: type,
    module: str,
    description: str,
    several: Mapping[str, str] | None = None,
    torchrun: bool = False,
) -> ArgumentParser:
    """Returns the parser of ``python -m <module>`` for the options in ``config_class``.

    Options in ``several``, with their help, take one or more words; they are required unless their
    field has a default. With ``torchrun`` the help explains how to start several processes.
    """
    # torchrun's argparse looks for its options in all words before it passes on the rest.
    epilog = (
        f"N processes: torchrun --nproc_per_node=N -m {module} -- OPTIONS. Without the -- torchrun "
        "takes --run for an option of its own."
    )
    several = several or {}
    required = {field.name for field in fields(config_class) if _has_no_default(field)}
    usage = "".join(f" --{name} {name.upper()} [...]" for name in several if name in required)
    prog = program(module)
    parser = _new_parser(
        prog=prog,
        usage=f"{prog}{usage} [--option VALUE ...]",
        description=description,
        epilog=epilog if torchrun else None,
    )
    for name, text in several.items():
        is_required = name in required
        default: list[str] | None = None if is_required else []
        parser.add_argument(
            f"--{name}", nargs="+", required=is_required, default=default, help=text
        )
    _add_options(parser, config_class, skip=several)
    return parser


def _has_no_default(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _new_parser(**arguments: Any) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=True, **arguments)
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_argument(
        "--plugin",
        default=argparse.SUPPRESS,  # not an option of a run: reading those imports nothing
        help="a module to import first, for what it registers, such as a model; several: a,b",
    )
    return parser


def _add_options(parser: ArgumentParser, config_class: type, skip: Iterable[str] = ()) -> None:
    """Adds the options of a dataclass; shells complete their values: a few words, or files."""
    parser.add_class_arguments(config_class, as_group=True, skip=set(skip))
    if "_ARGCOMPLETE" not in os.environ:
        return
    from argcomplete.completers import ChoicesCompleter, FilesCompleter

    choices = _help.choices(config_class)
    for action in parser._actions:
        words = choices.get(action.dest)
        cast(Any, action).completer = (
            ChoicesCompleter(dict.fromkeys(words, "")) if words else FilesCompleter()
        )


Layer = Callable[["Namespace"], Mapping[str, Any]]
"""Returns defaults, by option, that depend on other options; given options take precedence."""


def parse(
    parser: ArgumentParser,
    config_class: type[Config],
    argv: Sequence[str] | None,
    layer: Layer | None = None,
) -> Config:
    """Parses the options in ``argv`` (default: the command line of the process).

    Options may be written with dashes: ``--batch-size`` is ``--batch_size``. A Boolean option needs
    no value, and is false as ``--no_option``. Before values are checked, the entry points
    "pyseg.plugins" and the modules of ``--plugin`` are imported. ``--help`` and ``--version`` print
    and end the process.

    Raises:
        pyseg.errors.UserError: An option is unknown, or its value is invalid.
    """
    words = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    _answer(words, parser, config_class)
    words = _collected(list(_with_values(words, parser, config_class)), config_class)
    for key, value in _pairs(words):
        if value == "" and key[:2] == "--":
            raise UserError(f"{key}: expected a value, found an empty one")
    if layer is not None:
        # Parses the words first without the actions of --help and --print_config.
        first = _new_parser(prog=parser.prog, add_help=False, print_config=None)
        first.add_argument("-h", "--help", action="store_true")
        first.add_argument("--print_config", nargs="?")
        _add_options(first, config_class)
        first.set_defaults(_defaults(parser))
        given = _parsed(first, first.parse_args, words)
        import_plugins(given.get("plugin"))  # a preset of theirs may have defaults
        first.set_defaults(dict(layer(given)))  # once more: those of a recipe's preset follow
        parser.set_defaults(dict(layer(_parsed(first, first.parse_args, words))))
    options = _parsed(parser, parser.parse_args, words)
    import_plugins(options.get("plugin"))
    for name in _words(config_class):
        options[name] = _last_given(words, name, options[name])
    return _instantiate(config_class, options)


def _answer(words: Sequence[str], parser: ArgumentParser, config_class: type) -> None:
    """Prints the output of ``--help`` or ``--version``, and ends the process."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, topic = word.partition("=")
        if not equals and not following.startswith("-"):
            topic = following
        if name == "--version":
            print(f"pyseg {__version__}")
        elif name in ("-h", "--help"):
            if topic:
                print(_help.explain(config_class, topic))
            else:
                several = {a.dest: a.help or "" for a in parser._actions if a.nargs == "+"}
                usage, does = str(parser.usage), str(parser.description)
                print(_help.describe(config_class, usage, does, several, parser.epilog))
        else:
            continue
        sys.exit(0)


def _with_values(words: Sequence[str], parser: ArgumentParser, config_class: type) -> Iterator[str]:
    """Yields the words of a command line, with the values of Boolean options filled in."""
    known = [name[2:] for action in parser._actions for name in action.option_strings]
    flags = {name for name, hint in get_type_hints(config_class).items() if _help.is_flag(hint)}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name = word[2:] if word[:2] == "--" else ""
        if name not in known:
            matches = [option for option in known if name and option.startswith(name)]
            name = matches[0] if len(matches) == 1 else name
        if name in flags and following.lower() not in ("true", "false"):
            yield f"--{name}=true"
        elif name.startswith("no_") and name not in known and name[3:] in flags:
            yield f"--{name[3:]}=false"
        else:
            yield word


def _collected(words: Sequence[str], config_class: type) -> list[str]:
    """Joins the values of an option that takes several into a list, at the end.

    It may be given several times, each time with several words, as shells expand a glob to.
    """
    names = [field.name for field in fields(config_class) if field.metadata.get("repeated")]
    values: dict[str, list[str]] = {}
    kept, collecting = [], ""
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        name, equals, text = word[2:].partition("=")
        if word[:2] != "--":
            if collecting:
                values.setdefault(collecting, []).append(word)
            else:
                kept.append(word)
            continue
        collecting = name if name in names and not equals and following[:2] != "--" else ""
        if name in names and equals:
            values.setdefault(name, []).append(text)
        elif not collecting:
            kept.append(word)
    return kept + [f"--{name}={json.dumps(found)}" for name, found in values.items()]


_plugins: list[str] = []  # of the command that runs


def follow_up(words: str, processes: int = 1) -> str:
    """Returns the command ``python -m <words>`` with the plugins of this one.

    For several processes it is that of torchrun, which takes what follows the module after ``--``.
    """
    given = f" --plugin {','.join(_plugins)}" if _plugins else ""
    if processes > 1:
        module, _, options = words.partition(" ")
        return f"torchrun --nproc_per_node={processes} -m {module} -- {options}{given}"
    return f"python -m {words}{given}"


def plugins() -> str | None:
    """Returns the plugins of the command that runs, for its processes to import."""
    return ",".join(_plugins) or None


def import_plugins(modules: object) -> None:
    """Imports the modules of ``--plugin``, and the plugins of installed packages.

    Raises:
        pyseg.errors.UserError: There is no such module.
    """
    _plugins[:] = [] if modules is None else str(modules).split(",")
    for point in importlib.metadata.entry_points(group="pyseg.plugins"):
        point.load()
    for name in _plugins:
        if find_module(name) is None:
            raise UserError(
                f"--plugin {name}: expected a module that can be imported, such as my_models for "
                "my_models.py in this folder; found none"
            )


def _words(config_class: type) -> list[str]:
    """Lists the options of plain text, not YAML: null is a word like any other."""
    return [field.name for field in fields(config_class) if field.metadata.get("word")]


def _last_given(words: Sequence[str], name: str, value: Any) -> Any:
    return dict(_pairs(words)).get(f"--{name}", value)


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yields words of a command line with their values: the text after ``=``, or the next word."""
    for word, following in zip(words, [*words[1:], None], strict=False):
        key, equals, text = word.partition("=")
        yield key, text if equals else following


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name[:2] == "--" else argument


def _defaults(parser: ArgumentParser) -> dict[str, Any]:
    return {key: value for key, value in parser.get_defaults().items() if key != "config"}


def _parsed(parser: ArgumentParser, parse: Callable[[Any], Namespace], given: Any) -> Namespace:
    """Returns the options as jsonargparse parses them, and rewrites its errors."""
    try:
        return parse(given)
    except argparse.ArgumentError as error:
        raise UserError(_rewritten(parser, str(error))) from error
    except (RecursionError, UnicodeDecodeError) as error:
        files = [value for key, value in _pairs(given) if key == "--config" and value]
        where = " ".join(["--config", *files])
        found = "values that are nested too deeply"
        if isinstance(error, UnicodeDecodeError):
            found = f"bytes that are not UTF-8: {error.object[error.start : error.end]!r}"
        raise UserError(f"{where}: expected YAML, found {found}") from error


_KINDS = {
    "int": "a whole number",
    "float": "a finite number",
    "list": "a list such as [a, b]",
    "NoneType": "null",
}


def _rewritten(parser: ArgumentParser, message: str) -> str:
    known = [name[2:] for action in parser._actions for name in action.option_strings if name[2:]]
    more = f"`{parser.prog} --help` lists the options"
    if found := re.match(
        r"(?:unrecognized arguments: (\S+)|Group '(.+)' does not accept option '(.+)'"
        r"|Option '(.+)' is not accepted)",
        message,
    ):
        word, group, key, alone = found.groups()
        if word is not None and not word.startswith("--"):
            return f"{word}: expected an option, found a word on its own; {more}"
        name = f"{group}.{key}" if group else alone or word[2:].partition("=")[0]
        by_last = {option.rpartition(".")[2]: option for option in known}
        close = difflib.get_close_matches(name, known, n=1)
        close = close or [by_last[k] for k in difflib.get_close_matches(name, by_last, n=1)]
        hint = f" (did you mean --{close[0]}?)" if close else ""
        return f"--{name}: there is no such option{hint}; {more}"
    if found := re.match(
        r"argument (?:\S+/)?--(\S+): expected (one|at least one) argument", message
    ):
        name = found[1].removesuffix("+")  # jsonargparse's name of a list's option
        return (
            f"--{name}: expected a value, found none; one that begins with a dash is written "
            f"--{name}=-..."
        )
    if found := re.match(r"the following arguments are required: (.*)", message):
        return f"expected --{found[1].replace(', ', ', --')}; {more}"
    if found := re.match(r"Problems parsing config: *(.*)", message, re.DOTALL):
        return f"--config: expected YAML, found: {shorten(found[1], 300)}"
    if found := re.match(r"Unexpected config: *(.*)", message, re.DOTALL):
        return f"--config: expected a YAML file of options, found {shorten(found[1], 80) or 'none'}"
    if found := re.match(r'Parser key "(.+?)":\s*(.*)', message, re.DOTALL):
        name, text = found.groups()
        expected = ", ".join(
            dict.fromkeys(re.findall(r"Expected an? ([^\n]*?)(?:\. Got|\n|$)", text))
        )
        expected = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", expected)
        expected = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"one of \1", expected)
        for kind, words in _KINDS.items():
            expected = re.sub(rf"\b{kind}\b", words, expected)
        value = re.search(r"(?:Got value|Given value): (.*)", text, re.DOTALL)
        if expected and value:
            return f"--{name} {shorten(value[1], 80)}: expected {expected}"
        return f"--{name}: {shorten(text, 300)}"
    return " ".join(message.split())[:300]


def read_config(
    parser: ArgumentParser, config_class: type[Config], path: Path, layer: Layer | None = None
) -> Config:
    """Reads options that `write_config` wrote to a YAML file; references to other files are errors.

    Raises:
        pyseg.errors.UserError: The file does not contain valid options.
    """
    import yaml  # a dependency of jsonargparse

    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: expected YAML, found: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: expected options, found values nested too deeply") from error
    known = {field.name: field for field in fields(cast(Any, config_class))}
    if not isinstance(values, dict) or not values:
        found = type(values).__name__ if values else "none"
        raise UserError(f"{path}: expected options, found {found}")
    hints = get_type_hints(config_class)
    for name, value in values.items():
        if name not in known:  # such as config, a file that jsonargparse would read
            raise UserError(f"{path}: {name}: there is no such option")
        if is_dataclass(hints[name]) and not isinstance(value, dict):
            raise UserError(f"{path}: {name}: expected options, found {type(value).__name__}")
    try:
        for apply in () if layer is None else (layer, layer):  # twice, as in `parse`
            parser.set_defaults(dict(apply(_parsed(parser, parser.parse_string, text))))
        return _instantiate(config_class, _parsed(parser, parser.parse_string, text))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _instantiate(config_class: type[Config], options: Namespace, prefix: str = "") -> Config:
    """Makes the dataclass of options; its errors name the option."""
    hints, values = get_type_hints(config_class), {}
    for field in fields(cast(Any, config_class)):
        name, value = prefix + field.name, options[field.name]
        if is_dataclass(hints[field.name]):
            value = _instantiate(cast(type, hints[field.name]), value, name + ".")
        for text in value if isinstance(value, list) else [value]:
            if text == "":
                raise UserError(f"--{name}: expected a value, found an empty one")
            if isinstance(text, str) and "\0" in text:
                raise UserError(f"--{name} {text!r}: expected text without a NUL character")
            if name in _LOCAL and is_url(text):
                raise UserError(f"--{name} {named(text)}: expected a local path, found a URL")
        values[field.name] = value
    with option_group(prefix):
        return config_class(**values)


def write_config(parser: ArgumentParser, config: DataclassInstance, path: Path) -> None:
    """Writes options as YAML that ``--config`` and `read_config` read."""
    write_file(path, parser.dump(parser.parse_object(asdict(config))).encode())


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Records Ctrl-C and SIGTERM, so that a loop can stop at a safe point.

    A KeyboardInterrupt that leaves the context gets the signal as its argument, from which `run`
    makes the exit status. A second signal takes effect immediately. Signals that the process
    inherited as ignored stay ignored. Outside of the main thread, which alone may set handlers,
    this does nothing.

    Yields:
        A function that returns whether a signal was received.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    except KeyboardInterrupt as error:
        error.args = tuple(received)  # for the exit status
        raise
    finally:
        restore()


def run(main: Callable[[], None]) -> None:
    """Runs a command: errors that users can fix become one line on stderr and exit status 1.

    These are pyseg's errors about options or files, and the operating system's errors about a file
    or a full disk. Any other exception is a program error and keeps its traceback. The environment
    variable PYSEG_LOG sets the lowest level of the log lines on stderr.
    """
    # The process's number under torchrun.
    rank, several = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1")) > 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # class names in any script, on any terminal
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        _command.raise_on_interrupt()
        _show_log(first=rank == "0")
        main()
    except ArgumentError:
        raise
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except (PysegError, OSError) as error:
        expected = isinstance(error, PysegError) or error.filename or error.errno in FULL
        if not expected:
            raise
        where = f" (rank {rank})" if several else ""
        print(f"pyseg: error{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt as error:
        # Only one of several processes gets here (`pyseg.distributed.session`).
        _command.tell_interrupted()
        sys.exit(_command.interrupted_status(error))


def _reader_is_gone() -> bool:
    """Returns whether nobody reads stdout, as after ``| head``; Python then drops what is left."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _show_log(first: bool) -> None:
    name = os.environ.get("PYSEG_LOG", "info")
    level = logging.getLevelName(name.upper())
    if not isinstance(level, int):
        raise UserError(f"PYSEG_LOG={name}: expected one of debug, info, warning, error")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log = logging.getLogger("pyseg")
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(level if first else max(logging.WARNING, level))
