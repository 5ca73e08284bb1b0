"""Fetches the missing shards of a partition."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyseg import _cli
from pyseg._files import atomic_write
from pyseg._progress import Progress
from pyseg._text import counted
from pyseg._threads import in_threads
from pyseg.data import vocabulary
from pyseg.data.download.client import Client, LastingError
from pyseg.data.download.config import RELEASES, DownloadConfig
from pyseg.data.download.part import CHUNK, Part, StoppedError
from pyseg.data.download.plan import UNFINISHED, Shard, is_of_part, read_plan
from pyseg.data.download.state import State
from pyseg.errors import DataError, UserError

_PLANS = "http://data.yt8m.org"
_MIRROR = "http://{}.data.yt8m.org"
_VOCABULARIES = "https://research.google.com/youtube8m"

_HOPELESS = 10  # failures in a row after which a run ends


@dataclass
class DownloadReport:
    """The result of `download`.

    Attributes:
        folder: The folder of the shards.
        files: The number of requested files.
        there: The number of them that existed before.
        damaged: Existing files whose checksum differs from the plan's, to be fetched again.
        fetched: The number of fetched files.
        bytes: The number of bytes received, repetitions included.
        missing: The reason for each file that could not be fetched.
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
        """Whether all requested files exist."""
        return not self.missing and self.untried == 0

    @property
    def untried(self) -> int:
        """The number of files that were not tried after too many failures in a row."""
        return self.files - self.there - self.fetched - len(self.missing)


def download(config: DownloadConfig) -> DownloadReport:
    """Fetches the missing shards of a partition.

    An interruption at any time loses nothing: the same call resumes.

    Returns:
        What was fetched and what is missing. If a shard cannot be fetched, the others are, until
        ten in a row fail.

    Raises:
        pyseg.errors.DataError: The plan is malformed.
        pyseg.errors.UserError: The plan cannot be fetched, ``shard`` takes none of its files, the
            folder is in use by another download, or a file cannot be written.
        OSError: The folder cannot be created or written.
    """
    stop = threading.Event()
    client = Client(config.timeout, config.retries, stop)
    folder = Path(config.folder) / f"{config.subset}-{config.partition}"
    report = DownloadReport(folder)
    shards = _read_shards(config, client)
    folder.mkdir(parents=True, exist_ok=True)
    if config.vocabulary:
        _fetch_vocabularies(config, client, report)
    report.files += len(shards)
    with State(folder) as state:
        right, wrong = _check(folder, shards, state, config)
        absent = [shard for shard in shards if shard not in right]
        report.there += len(right)
        report.damaged = sorted(shard.name for shard in wrong)
        with _Arrivals(folder.name, len(absent)) as progress:
            _fetch_all(absent, config, client, state, progress, report)
            report.bytes = progress.bytes
    return report


def _read_shards(config: DownloadConfig, client: Client) -> list[Shard]:
    """Fetches the plan, and returns its requested shards."""
    number, features = RELEASES[config.subset].split("/")
    plans = (config.server or _PLANS).rstrip("/")
    url = f"{plans}/{number}/download_plans/{features}_{config.partition}.json"
    try:
        plan = client.read(url)
    except LastingError as error:
        raise UserError(str(error)) from error
    part = config.part_of_shards()
    shards = [shard for shard in read_plan(plan, url) if is_of_part(shard, part)]
    if not shards:
        raise UserError(
            f"shard: expected a part of the files of {url}, found none in "
            f"{config.shard}: use a smaller n"
        )
    return shards


def _fetch_all(
    shards: Sequence[Shard],
    config: DownloadConfig,
    client: Client,
    state: State,
    progress: _Arrivals,
    report: DownloadReport,
) -> None:
    """Fetches shards, until too many in a row fail."""
    mirror = (config.server or _MIRROR.format(config.mirror)).rstrip("/")
    source = f"{mirror}/{RELEASES[config.subset]}/{config.partition}"

    def fetch(shard: Shard) -> None:
        url, path = f"{source}/{shard.published}", _path(report.folder, shard)
        _fetch(client, url, path, shard.md5, state, progress)

    in_a_row = 0
    with contextlib.closing(in_threads(fetch, shards, config.jobs, client.stop)) as outcomes:
        for shard, failure in outcomes:
            if failure is None:
                report.fetched += 1
                in_a_row = 0
                progress.file_done()
            elif isinstance(failure, LastingError):
                report.missing[shard.name] = str(failure)
                in_a_row += 1
                if in_a_row == _HOPELESS:
                    return
            else:
                raise failure


def _path(folder: Path, shard: Shard) -> Path:
    """Returns the path of a shard, which may not exist yet."""
    path, published = folder / shard.name, folder / shard.published
    return published if published.exists() and not path.exists() else path


def _fetch_vocabularies(config: DownloadConfig, client: Client, report: DownloadReport) -> None:
    server = (config.server or _VOCABULARIES).rstrip("/")
    tables: list[tuple[str, str, Callable[[Path], object]]] = [
        (vocabulary.FILE, "csv/2/vocabulary.csv", vocabulary.read_vocabulary)
    ]
    if config.subset == "segment":
        published = "csv/segments/vocabulary.csv"
        tables.append((vocabulary.SEGMENT_FILE, published, vocabulary.read_segment_vocabulary))
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


def _check(
    folder: Path, shards: Sequence[Shard], state: State, config: DownloadConfig
) -> tuple[set[Shard], set[Shard]]:
    """Returns the existing shards with the right checksum, and those with a wrong one."""
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

        with contextlib.closing(in_threads(check, unsure, config.jobs, stop)) as outcomes:
            for _, failure in outcomes:
                if failure is not None:
                    raise failure
    return present.keys() - wrong, wrong


class _Arrivals:
    """Shows the bytes received; their total is an estimate until all files have started."""

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
        """Sets the number of bytes still to come of a file."""
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
    client: Client, url: str, path: Path, md5: str, state: State, progress: _Arrivals
) -> None:
    """Fetches a shard, or the rest of it.

    Raises:
        LastingError: It cannot be fetched.
        StoppedError: The user asked to stop.
        pyseg.errors.UserError: It cannot be written.
    """
    unfinished = path.with_name(path.name + UNFINISHED)

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
            "continues from there"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Fetches, and reports existing, fetched and missing files.

    Raises:
        pyseg.errors.UserError: Files are missing.
    """
    parser = _cli.make_parser(
        DownloadConfig, "pyseg.data download", "Fetches shards of YouTube-8M."
    )
    report = download(_cli.parse(parser, DownloadConfig, argv))
    print(
        f"{report.folder}: {counted(report.files, 'file')}: {report.there} there before, "
        f"{report.fetched} fetched ({report.bytes / 1e6:.1f} MB)"
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
            f"{report.files - report.there - report.fetched} of {counted(report.files, 'file')} "
            "missing; the same command continues from here"
        )
