"""The command of pyseg, if any, that this process was started for."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn


def started_module() -> str | None:
    """Returns the module of pyseg that ``python -m`` or the console script is starting, if any.

    Only while the package is being imported: afterwards ``sys.argv`` has the name of a file.
    """
    if sys.argv[:1] == ["-m"]:  # the words after the module are the same in both lists
        module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
        return module if module.partition(".")[0] == "pyseg" else None
    is_script = bool(sys.argv) and os.path.basename(sys.argv[0]) == "pyseg"
    return "pyseg.__main__" if is_script else None


def end_on_interrupt() -> None:
    """Lets Ctrl-C end the process with a line until `raise_on_interrupt`.

    An import that is interrupted would show a traceback. A handler of someone else stays, and so
    does a signal that the process inherited as ignored.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt again, after `end_on_interrupt`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_on_error(error: Exception) -> NoReturn:
    """Ends a command with the line of an error, before it has begun."""
    print(f"pyseg: error: {error}", file=sys.stderr, flush=True)
    sys.exit(1)


def tell_interrupted() -> None:
    """Prints the line of an interrupted command."""
    after_echo = "\n" if sys.stderr.isatty() else ""  # the terminal's ^C
    print(f"{after_echo}pyseg: interrupted", file=sys.stderr, flush=True)


def interrupted_status(error: BaseException) -> int:
    """Returns the exit status for a KeyboardInterrupt: 128 and the signal, by default Ctrl-C's.

    Args:
        error: Its argument is the signal, if it is known.
    """
    number = next(iter(error.args), None)
    return 128 + (number if isinstance(number, int) else signal.SIGINT)


def _end(number: int, frame: FrameType | None) -> None:
    tell_interrupted()
    os._exit(128 + number)  # what the imports have begun is not worth a clean end
