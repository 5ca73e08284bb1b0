"""Fetches YouTube-8M: ``python -m pyseg.data download --subset segment --partition validate``.

YouTube-8M is published as a plan a partition, which lists its shards with their MD5 checksums, and
as the shards themselves, on three mirrors, together with a script that fetches them
(https://research.google.com/youtube8m/download.html):

=========  ===========================  ========================================================
subset     partitions                   on the server
=========  ===========================  ========================================================
frame      train, validate, test        2/frame/...: frame features, release of 2018, 1.5 TB
video      train, validate, test        2/video/...: their means over each video
segment    validate, test               3/frame/...: frames with rated segments, release of 2019
=========  ===========================  ========================================================

Shards lie in ``<folder>/<subset>-<partition>/`` under the names that the script gives them
(``trainaa.tfrecord`` becomes ``train0000.tfrecord``); one that is there under its published name
keeps it. A shard appears under its name when all of it is there and has the plan's checksum; until
then it is ``<name>.part``, which the next try, or the next run, goes on from. The servers speak
plain HTTP: the checksums guard against damage, not against forgery.

Source: the script, http://data.yt8m.org/download.py, takes a partition in three parts, such as
2/video/train; its plan is http://data.yt8m.org/<1>/download_plans/<2>_<3>.json, and a shard
http://<mirror>.data.yt8m.org/<1>/<2>/<3>/<name>, for every release. That those of 2019 are
3/frame/validate and 3/frame/test, and where both vocabularies lie, is told by
https://medium.com/google-cloud/youtube-8m-dataset-c2ee9c79d136.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import queue
import re
import string
import sys
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pyseg import _cli
from pyseg._containers import parse_json
from pyseg._files import atomic_write
from pyseg._progress import Progress
from pyseg.data import vocabulary
from pyseg.data._http import CHUNK, Client, LastingError, Part, StoppedError, open_to_append
from pyseg.data._tables import shown
from pyseg.errors import ArgumentError, DataError, UserError

_RELEASES = {"frame": "2/frame", "video": "2/video", "segment": "3/frame"}
_PLANS = "http://data.yt8m.org"
_MIRROR = "http://{}.data.yt8m.org"
_VOCABULARIES = "https://research.google.com/youtube8m"

_DIGITS = string.ascii_lowercase + string.ascii_uppercase + string.digits
_PUBLISHED = re.compile(r"(train|validate|test)([A-Za-z0-9])([A-Za-z0-9])\.tfrecord")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_MD5 = re.compile(r"[0-9a-f]{32}")

_STATE = ".download.jsonl"
_UNFINISHED = ".part"
_HOPELESS = 10  # shards missing in a row that end a run
_PATIENCE = 1.0  # seconds for threads to stop

_Item = TypeVar("_Item")


@dataclass
class DownloadConfig:
    """What to fetch, where from, and where to.

    Args:
        subset: "frame" (frame features of 2018), "video" (features of whole videos of 2018) or
            "segment" (frame features with rated segments of 2019).
        partition: "train", "validate" or "test"; segment has no train of its own.
        folder: Where to write: <folder>/<subset>-<partition>/.
        mirror: The mirror nearest to you: "us", "eu" or "asia".
        server: A URL below which plans, shards and vocabularies lie as on the published servers
            (2/download_plans/frame_train.json, 2/frame/train/..., csv/2/vocabulary.csv); default:
            those.
        shard: "i,n" takes the i-th of n parts of the shards, i from 1; the same shards as the
            published script takes.
        jobs: Files fetched at the same time.
        retries: Tries after the first that may fail in a row, without a new byte, before a file is
            given up.
        timeout: Seconds without a byte after which a connection counts as dead; so does one that
            brings fewer than 1,000 bytes a second over twice as long.
        verify: Read the files that are there again, to see whether their checksums still hold.
        vocabulary: Also fetch vocabulary.csv and, for segment, segment_vocabulary.csv into the
            folder.

    Raises:
        ValueError: A value is out of its range.
    """

    subset: Literal["frame", "video", "segment"]
    partition: Literal["train", "validate", "test"]
    folder: str = "yt8m"
    mirror: Literal["us", "eu", "asia"] = "us"
    server: str | None = None
    shard: str = "1,1"
    jobs: int = 4
    retries: int = 10
    timeout: float = 30.0
    verify: bool = False
    vocabulary: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.subset not in _RELEASES:
            raise ArgumentError(
                f"subset: expected one of {', '.join(_RELEASES)}, found {self.subset}"
            )
        if self.partition not in ("train", "validate", "test"):
            raise ArgumentError(
                f"partition: expected train, validate or test, found {self.partition}"
            )
        if self.subset == "segment" and self.partition == "train":
            raise ArgumentError(
                "partition: expected validate or test of the subset segment, found train (its "
                "models are pretrained on --subset frame --partition train)"
            )
        if self.mirror not in ("us", "eu", "asia"):
            raise ArgumentError(f"mirror: expected us, eu or asia, found {self.mirror}")
        if self.server is not None:
            parts = urllib.parse.urlsplit(self.server)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ArgumentError(f"server: expected an http or https URL, found {self.server}")
            if parts.query or parts.fragment:
                raise ArgumentError(f"server: expected a URL without ? and #, found {self.server}")
        self.part_of_shards()
        if self.jobs < 1:
            raise ArgumentError(f"jobs: expected at least 1, found {self.jobs}")
        if self.retries < 0:
            raise ArgumentError(f"retries: expected at least 0, found {self.retries}")
        if not 0 < self.timeout < math.inf:
            raise ArgumentError(f"timeout: expected more than 0 seconds, found {self.timeout}")

    def part_of_shards(self) -> tuple[int, int]:
        """Returns the numbers in ``shard``."""
        match = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9})", self.shard.replace(" ", ""))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ArgumentError(f"shard: expected i,n with 1 <= i <= n, found {self.shard}")
        return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Shard:
    """A file of a plan.

    Attributes:
        name: Its name here, such as train0000.tfrecord.
        published: Its name on the server, such as trainaa.tfrecord.
        md5: Its checksum, 32 hexadecimal digits.
    """

    name: str
    published: str
    md5: str


@dataclass
class DownloadReport:
    """What `download` did.

    Attributes:
        folder: Where the shards lie.
        files: How many were asked for.
        there: How many of them were there before.
        damaged: Files that were there with another checksum than the plan's, to be fetched again.
        fetched: How many were fetched.
        bytes: How many bytes that took, with all that came twice.
        missing: Why each file that was tried is not there.
    """

    folder: Path
    files: int = 0
    there: int = 0
    damaged: list[str] = field(default_factory=list)
    fetched: int = 0
    bytes: int = 0
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is there."""
        return not self.missing and self.untried == 0

    @property
    def untried(self) -> int:
        """How many files were not tried, after too many failures in a row."""
        return self.files - self.there - self.fetched - len(self.missing)


def read_plan(content: bytes, name: str) -> list[Shard]:
    """Returns the shards of a plan, in the order of their names.

    Args:
        content: The JSON of the plan: ``{"files": {"trainaa.tfrecord": "<MD5>", ...}}``.
        name: What to call it in errors.

    Raises:
        pyseg.errors.DataError: It is not a plan, or names a file that could lie elsewhere.

    Example:
        >>> read_plan(b'{"files": {"trainbc.tfrecord": "0123456789abcdef0123456789abcdef"}}', "it")
        [Shard(name='train0064.tfrecord', published='trainbc.tfrecord', md5='0123456789abcdef...')]
    """
    plan = parse_json(content, name)
    files = plan.get("files") if isinstance(plan, dict) else None
    if not isinstance(files, dict) or not files:
        raise DataError(
            f'{name}: expected a plan, JSON with "files": {{name: MD5}}, found {content[:60]!r}'
        )
    shards = []
    for published, md5 in files.items():
        if not _FILE_NAME.fullmatch(published) or published.endswith(_UNFINISHED):
            raise DataError(
                f"{name}: expected names of files in one folder, found {shown(published)}"
            )
        if not isinstance(md5, str) or not _MD5.fullmatch(md5.lower()):
            raise DataError(
                f"{name}: {published}: expected an MD5 checksum, found {shown(str(md5))}"
            )
        shards.append(Shard(_local_name(published), published, md5.lower()))
    names: dict[str, str] = {}
    for shard in shards:
        if (other := names.setdefault(shard.name, shard.published)) != shard.published:
            raise DataError(
                f"{name}: expected different names, found {other} and {shard.published}, both of "
                f"which are {shard.name} here"
            )
    return sorted(shards, key=lambda shard: shard.name)


def _local_name(published: str) -> str:
    """Returns the name under which the published script saves a shard.

    It numbers them, so that trainaB and trainAb are two files everywhere.
    """
    match = _PUBLISHED.fullmatch(published)
    if match is None:
        return published
    number = _DIGITS.index(match[2]) * len(_DIGITS) + _DIGITS.index(match[3])
    return f"{match[1]}{number:04d}.tfrecord"


def _is_of_part(shard: Shard, part: tuple[int, int]) -> bool:
    """Returns whether the published script takes a shard for ``shard=i,n``."""
    digest = hashlib.md5(shard.published.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % part[1] == part[0] - 1


def download(config: DownloadConfig) -> DownloadReport:
    """Fetches the shards of a partition that are not there yet.

    An interruption at any time loses nothing: the same call goes on.

    Returns:
        What was fetched and what is missing: a shard that is not to be had does not keep the others
        from being fetched, until ten in a row are not.

    Raises:
        pyseg.errors.DataError: The plan is malformed.
        pyseg.errors.UserError: The plan is not to be had, ``shard`` takes none of its files, the
            folder is in use by another download, or a file cannot be written.
        OSError: The folder cannot be made or written.
    """
    stop = threading.Event()
    client = Client(config.timeout, config.retries, stop)
    release, part = _RELEASES[config.subset], config.part_of_shards()
    folder = Path(config.folder) / f"{config.subset}-{config.partition}"
    report = DownloadReport(folder)
    number, features = release.split("/")
    plans = (config.server or _PLANS).rstrip("/")
    url = f"{plans}/{number}/download_plans/{features}_{config.partition}.json"
    try:
        plan = client.read(url)
    except LastingError as error:
        raise UserError(str(error)) from error
    shards = [shard for shard in read_plan(plan, url) if _is_of_part(shard, part)]
    if not shards:
        raise UserError(f"shard: {config.shard} takes no file of {url}: use a smaller n")
    folder.mkdir(parents=True, exist_ok=True)
    if config.vocabulary:
        _fetch_vocabularies(config, client, report)
    report.files += len(shards)
    mirror = (config.server or _MIRROR.format(config.mirror)).rstrip("/")
    with _State(folder) as state:
        right, wrong = _check(folder, shards, state, config)
        absent = [shard for shard in shards if shard not in right]
        report.there += len(right)
        report.damaged = sorted(shard.name for shard in wrong)
        with _Arrivals(folder.name, len(absent)) as progress:

            def fetch(shard: Shard) -> None:
                source = f"{mirror}/{release}/{config.partition}/{shard.published}"
                _fetch(client, source, _path(folder, shard), shard.md5, state, progress)

            in_a_row = 0
            with contextlib.closing(_in_threads(fetch, absent, config.jobs, stop)) as outcomes:
                for shard, failure in outcomes:
                    if failure is None:
                        report.fetched += 1
                        in_a_row = 0
                        progress.file_done()
                    elif isinstance(failure, LastingError):
                        report.missing[shard.name] = str(failure)
                        in_a_row += 1
                        if in_a_row == _HOPELESS:
                            break
                    else:
                        raise failure
            report.bytes = progress.bytes
    return report


def _path(folder: Path, shard: Shard) -> Path:
    """Returns where a shard lies or will lie."""
    path, published = folder / shard.name, folder / shard.published
    return published if published.exists() and not path.exists() else path


def _fetch_vocabularies(config: DownloadConfig, client: Client, report: DownloadReport) -> None:
    server = (config.server or _VOCABULARIES).rstrip("/")
    tables: list[tuple[str, str, Callable[[Path], object]]] = [
        ("vocabulary.csv", "csv/2/vocabulary.csv", vocabulary.read_vocabulary)
    ]
    if config.subset == "segment":
        published = "csv/segments/vocabulary.csv"
        tables.append(("segment_vocabulary.csv", published, vocabulary.read_segment_vocabulary))
    for name, source, read in tables:
        report.files += 1
        path, url = Path(config.folder) / name, f"{server}/{source}"
        with contextlib.suppress(DataError, FileNotFoundError):
            read(path)
            report.there += 1
            continue
        try:
            content = client.read(url)
        except LastingError as error:
            report.missing[name] = str(error)
            continue
        try:
            with atomic_write(path) as file:
                file.write(content)
                file.flush()
                read(Path(file.name))
            report.fetched += 1
        except DataError:
            found = repr(content[:40])
            report.missing[name] = f"{url}: expected a table with the column Index, found {found}"


class _State:
    """What is known of the files in a folder, kept there as a line of JSON a fact.

    Of a finished file: size and time of the file whose checksum was found right, so that it need
    not be read again. Of an unfinished one: what the server called the version that it is part of.
    A file without facts, or with wrong ones, costs time but no data.

    Raises:
        pyseg.errors.UserError: Another process has it open, or it is a symbolic link.
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
            pass  # a file system without locks
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # a line that was cut off
                fact = json.loads(line)
                if isinstance(fact, dict) and isinstance(fact.get("name"), str):
                    self._facts[fact["name"]] = fact
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")  # ends the line, which would take in the next one

    def __enter__(self) -> _State:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _note(self, **fact: Any) -> None:
        self._file.write(json.dumps(fact).encode() + b"\n")

    def note_finished(self, path: Path, md5: str) -> None:
        found = path.stat()
        self._note(name=path.name, md5=md5, size=found.st_size, mtime_ns=found.st_mtime_ns)

    def is_finished(self, path: Path, md5: str) -> bool:
        fact, found = self._facts.get(path.name, {}), path.stat()
        wanted = {"md5": md5, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
        return wanted.items() <= fact.items()

    def note_begun(self, path: Path, md5: str, version: str | None) -> None:
        self._note(name=path.name, md5=md5, version=version)

    def begun(self, path: Path, md5: str) -> tuple[bool, str | None]:
        """Returns whether what there is of a file belongs to this checksum, and its version."""
        fact = self._facts.get(path.name, {})
        version = fact.get("version")
        return fact.get("md5", md5) == md5, version if isinstance(version, str) else None


def _check(
    folder: Path, shards: Sequence[Shard], state: _State, config: DownloadConfig
) -> tuple[set[Shard], set[Shard]]:
    """Returns the shards that are there with the right checksum, and those with a wrong one."""
    present = {shard: _path(folder, shard) for shard in shards if _path(folder, shard).is_file()}
    unsure = [
        shard
        for shard, path in present.items()
        if config.verify or not state.is_finished(path, shard.md5)
    ]
    wrong: set[Shard] = set()
    stop, lock = threading.Event(), threading.Lock()
    size = sum(present[shard].stat().st_size for shard in unsure)
    with Progress("checking", "B", size, scale=True, hidden=not unsure) as bar:

        def check(shard: Shard) -> None:
            digest = hashlib.md5(usedforsecurity=False)
            with open(present[shard], "rb") as file:
                while chunk := file.read(CHUNK):
                    if stop.is_set():
                        raise StoppedError
                    digest.update(chunk)
                    with lock:
                        bar.update(len(chunk))
            if digest.hexdigest() == shard.md5:
                state.note_finished(present[shard], shard.md5)
            else:
                wrong.add(shard)

        with contextlib.closing(_in_threads(check, unsure, config.jobs, stop)) as outcomes:
            for _, failure in outcomes:
                if failure is not None:
                    raise failure
    return present.keys() - wrong, wrong


def _in_threads(
    work: Callable[[_Item], None], items: Sequence[_Item], jobs: int, stop: threading.Event
) -> Generator[tuple[_Item, BaseException | None], None, None]:
    """Yields the items as they are done, each with what was raised, and sets ``stop`` at the end.

    Unlike those of an executor, its threads do not keep the process from ending while they wait for
    a dead server.
    """
    todo: queue.SimpleQueue[_Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[_Item, BaseException | None]] = queue.SimpleQueue()
    for item in items:
        todo.put(item)

    def run() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                work(item)
            except BaseException as error:
                done.put((item, error))
            else:
                done.put((item, None))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(jobs, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            yield done.get()
    finally:
        stop.set()
        until = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


class _Arrivals:
    """Shows the bytes that are to come; their number is an estimate until all files began."""

    def __init__(self, name: str, files: int) -> None:
        self.bytes = 0
        self._files, self._done = files, 0
        self._came: dict[Path, int] = defaultdict(int)
        self._expected: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._bar = Progress(name, "B", scale=True, hidden=not files)

    def __enter__(self) -> _Arrivals:
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.__exit__(*raised)

    def expect(self, path: Path, size: int) -> None:
        """Takes note that so many bytes of a file are to come."""
        with self._lock:
            self._expected[path] = self._came[path] + size
            known, total = len(self._expected), sum(self._expected.values())
            self._bar.expect(total + total // known * (self._files - known))

    def update(self, path: Path, size: int) -> None:
        with self._lock:
            self.bytes += size
            self._came[path] += size
            self._bar.update(size)

    def file_done(self) -> None:
        self._done += 1
        self._bar.note(files=f"{self._done} of {self._files}")


def _fetch(
    client: Client, url: str, path: Path, md5: str, state: _State, progress: _Arrivals
) -> None:
    """Fetches a shard, or the rest of it.

    Raises:
        LastingError: It is not to be had.
        StoppedError: It is not wanted any more.
        pyseg.errors.UserError: It cannot be written.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)

    def begun(version: str | None, size: int) -> None:
        state.note_begun(path, md5, version)
        progress.expect(path, size)

    try:
        of_this_plan, version = state.begun(path, md5)
        if not of_this_plan:
            unfinished.unlink(missing_ok=True)
        with Part(unfinished, version, client.stop) as part:
            client.fetch(url, part, md5, begun, lambda size: progress.update(path, size))
            part.finish(path)
        state.note_finished(path, md5)
    except OSError as error:
        raise UserError(
            f"{unfinished}: {error.strerror or error}; what has come is kept, and the same command "
            "goes on from there"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Fetches, and says what is there and what is missing.

    Raises:
        pyseg.errors.UserError: Something is missing.
    """
    parser = _cli.make_parser(
        DownloadConfig, "pyseg.data download", "Fetches shards of YouTube-8M."
    )
    report = download(_cli.parse(parser, DownloadConfig, argv))
    print(
        f"{report.folder}: {report.files} files: {report.there} were there, {report.fetched} "
        f"fetched ({report.bytes / 1e6:.1f} MB)"
    )
    for name in report.damaged:
        print(f"damaged, fetched again: {name}", file=sys.stderr)
    for name, reason in sorted(report.missing.items()):
        print(f"missing: {name}: {reason}", file=sys.stderr)
    if report.untried:
        print(
            f"missing: {report.untried} others, not tried after {_HOPELESS} in a row were missing",
            file=sys.stderr,
        )
    if not report.complete:
        raise UserError(
            f"{report.files - report.there - report.fetched} of {report.files} files are missing; "
            "the same command goes on from here"
        )
