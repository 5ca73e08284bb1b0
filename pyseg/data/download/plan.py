"""Plans, which list the shards of a partition with their checksums."""

from __future__ import annotations

import hashlib
import re
import string
from dataclasses import dataclass

from pyseg._containers import parse_json
from pyseg.data._tables import shown
from pyseg.errors import DataError

UNFINISHED = ".part"
"""The suffix of unfinished files."""

_DIGITS = string.ascii_lowercase + string.ascii_uppercase + string.digits
_PUBLISHED = re.compile(r"(train|validate|test)([A-Za-z0-9])([A-Za-z0-9])\.tfrecord")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_MD5 = re.compile(r"[0-9a-f]{32}")


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


def read_plan(content: bytes, name: str) -> list[Shard]:
    """Returns the shards of a plan, in the order of their names.

    Args:
        content: The JSON of the plan: ``{"files": {"trainaa.tfrecord": "<MD5>", ...}}``.
        name: Its name in errors.

    Raises:
        pyseg.errors.DataError: It is not a plan, or names a file outside the folder.

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
        if not _FILE_NAME.fullmatch(published) or published.endswith(UNFINISHED):
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

    The script numbers them, as trainaB and trainAb are one file if case does not matter.
    """
    match = _PUBLISHED.fullmatch(published)
    if match is None:
        return published
    number = _DIGITS.index(match[2]) * len(_DIGITS) + _DIGITS.index(match[3])
    return f"{match[1]}{number:04d}.tfrecord"


def is_of_part(shard: Shard, part: tuple[int, int]) -> bool:
    """Returns whether the published script takes a shard for ``shard=i,n``."""
    digest = hashlib.md5(shard.published.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % part[1] == part[0] - 1
