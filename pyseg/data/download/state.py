"""What is known of the files in a folder, kept between downloads."""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path
from typing import Any

from pyseg.data.download.part import open_to_append
from pyseg.errors import UserError

_STATE = ".download.jsonl"


class State:
    """What is known of the files in a folder, kept there in a file, one line of JSON per fact.

    Of a finished file: its size and time when its checksum was verified, so that it need not be
    read again. Of an unfinished one: the server's version of it. Missing or wrong facts cost time
    but no data.

    Raises:
        pyseg.errors.UserError: Another process has the folder locked, or the file is a symbolic
            link.
    """

    def __init__(self, folder: Path) -> None:
        self._facts: dict[str, dict[str, Any]] = {}
        self._file = open_to_append(folder / _STATE, buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{folder}: another download is at work there") from None
        except OSError:
            pass  # the file system has no locks
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # a line that was cut off
                fact = json.loads(line)
                if isinstance(fact, dict) and isinstance(fact.get("name"), str):
                    self._facts[fact["name"]] = fact
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")  # ends a partial line, to which the next one would be appended

    def __enter__(self) -> State:
        """Returns itself; the folder is unlocked at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unlocks the folder."""
        self._file.close()

    def _note(self, **fact: Any) -> None:
        self._file.write(json.dumps(fact).encode() + b"\n")

    def note_finished(self, path: Path, md5: str) -> None:
        """Records that a file is complete and has this checksum."""
        found = path.stat()
        self._note(name=path.name, md5=md5, size=found.st_size, mtime_ns=found.st_mtime_ns)

    def is_finished(self, path: Path, md5: str) -> bool:
        """Returns whether a file had this checksum and has not changed since."""
        fact, found = self._facts.get(path.name, {}), path.stat()
        wanted = {"md5": md5, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
        return wanted.items() <= fact.items()

    def note_begun(self, path: Path, md5: str, version: str | None) -> None:
        """Records the version of an unfinished file, and the checksum of the complete one."""
        self._note(name=path.name, md5=md5, version=version)

    def begun(self, path: Path, md5: str) -> tuple[bool, str | None]:
        """Returns whether an unfinished file is for this checksum, and its version."""
        fact = self._facts.get(path.name, {})
        version = fact.get("version")
        return fact.get("md5", md5) == md5, version if isinstance(version, str) else None
