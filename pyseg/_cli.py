"""What the runnable modules share: typed configuration from the command line, and calm errors.

A command's options are a dataclass; jsonargparse turns it into flags, YAML (``--config``) and
``--print_config``, with the help texts taken from its docstring.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pyseg._files import written_whole
from pyseg.errors import ArgumentError, PysegError, UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a write that fails so knows no file name


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Reports an `ArgumentError` as a `UserError`: for calls that check what the user asked for."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(str(error)) from error


def make_parser(
    config_class: type,
    module: str,
    description: str,
    several: Mapping[str, str] | None = None,
    torchrun: bool = False,
) -> ArgumentParser:
    """Returns the command line of ``python -m <module>`` for the options in ``config_class``.

    Those in ``several``, with their help, must be there and take one or more words. With
    ``torchrun`` the help says how several processes are started.
    """
    from jsonargparse import ArgumentParser

    # argparse looks at all words for options before it gives the rest to the command.
    epilog = (
        f"N processes: torchrun --nproc_per_node=N -m {module} -- OPTIONS. Without the -- torchrun "
        "takes --run for an option of its own."
    )
    parser = ArgumentParser(
        prog=f"python -m {module}", description=description, epilog=epilog if torchrun else None
    )
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    for name, text in (several or {}).items():
        parser.add_argument(f"--{name}", nargs="+", required=True, help=text)
    parser.add_class_arguments(config_class, as_group=True, skip=set(several or ()))
    return parser


def parse(parser: ArgumentParser, config_class: type[Config], argv: Sequence[str] | None) -> Config:
    """Returns the options given in ``argv`` (default: the command line of the process).

    Options may be written with dashes too: ``--batch-size`` is ``--batch_size``.
    """
    given = arguments(argv)
    return _instantiate(parser, config_class, parser.parse_args([_underscored(a) for a in given]))


def arguments(argv: Sequence[str] | None) -> list[str]:
    """Returns the arguments given, by default the command line of the process."""
    return list(sys.argv[1:] if argv is None else argv)


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name[:2] == "--" else argument


def read_config(parser: ArgumentParser, config_class: type[Config], path: Path) -> Config:
    """Returns the options that `write_config` left in a YAML file."""
    return _instantiate(parser, config_class, parser.parse_path(str(path)))


def _instantiate(parser, config_class, namespace):  # type: ignore[no-untyped-def]
    with user_errors():
        values = dict(parser.instantiate(namespace).items())
        values.pop("config", None)
        return config_class(**values)


def write_config(parser: ArgumentParser, config: DataclassInstance, path: Path) -> None:
    """Writes a configuration as YAML that ``--config`` and `read_config` read back."""
    with written_whole(path) as file:
        file.write(parser.dump(parser.parse_object(asdict(config))).encode())


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Takes note of Ctrl-C and SIGTERM, so that a loop can stop where it may.

    A second one is carried out at once. What the process was started to ignore stays ignored.
    Outside of the main thread, which alone may set handlers, nothing is changed.

    Yields:
        A function that says whether there was one.
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
    finally:
        restore()


def run(main: Callable[[], None]) -> None:
    """Runs a command: what the user can mend becomes one line on stderr and exit status 1.

    That is one of pyseg's errors about a request or a file, and an error of the operating system
    about a file or a full disk. Every other exception is a program error and keeps its traceback.
    """
    try:
        main()
    except ArgumentError:
        raise
    except (PysegError, OSError) as error:
        told = isinstance(error, PysegError) or error.filename or error.errno in _FULL
        if not told:
            raise
        # Which of the processes that torchrun has started.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        where = f" (rank {os.environ.get('RANK')})" if several else ""
        print(f"pyseg: error{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("pyseg: interrupted", file=sys.stderr)
        sys.exit(130)
