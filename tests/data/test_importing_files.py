"""Importing features from tar and Parquet files: the same records as from NumPy files."""

from __future__ import annotations

import io
import itertools
import pickle
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyseg.data import FeatureSet, import_features, importing
from pyseg.data.importing import holds_collection
from pyseg.errors import DataError, MissingFileError, UserError

VIDEOS = {
    name: np.random.default_rng(number).normal(size=(10 + number, 4)).astype(np.float32)
    for number, name in enumerate(("a", "b c", "films/d"))
}


def saved(array: np.ndarray, **named: np.ndarray) -> bytes:
    file = io.BytesIO()
    if named:
        np.savez(file, **named)  # type: ignore[arg-type]
    else:
        np.save(file, array)
    return file.getvalue()


NOTHING = np.empty(0)


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("a.folder.npy")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def written(folder: Path, out: Path, **options: Any) -> tuple[bytes, FeatureSet]:
    report = import_features(folder, out, **options)
    assert report.features is not None
    return (out / "videos-00000.tfrecord").read_bytes(), report.features


@pytest.fixture
def expected(tmp_path: Path) -> tuple[bytes, FeatureSet]:
    """What the same features give as NumPy files."""
    for name, array in VIDEOS.items():
        path = tmp_path / "numpy" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, clip=array, sound=array[:, :2] * 3)
    return written(tmp_path / "numpy", tmp_path / "from numpy")


def rows_of_frames() -> dict[str, list[Any]]:
    names = [name for name, array in VIDEOS.items() for _ in array]
    clip = np.concatenate(list(VIDEOS.values()))
    return {"video": names, "clip": clip.tolist(), "sound": (clip[:, :2] * 3).tolist()}


def write_parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(dict(columns)), path, **options)
    return path


def lists(cells: list[Any], axes: int, kind: str = "float32", fixed: int = -1) -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    numbers = pyarrow.list_(getattr(pyarrow, kind)(), fixed)
    return pyarrow.array(cells, pyarrow.list_(numbers) if axes == 2 else numbers)


def frames_table(**more: Any) -> dict[str, Any]:
    columns = rows_of_frames()
    found = {name: lists(columns[name], 1) for name in ("clip", "sound")}
    return {"video": columns["video"], **found, **more}


def test_a_tar_gives_the_records_of_numpy_files(
    tmp_path: Path, expected: tuple[bytes, FeatureSet]
) -> None:
    """Features lie in one member each or together; others, hidden ones and folders are ignored."""
    members: list[tuple[str, bytes]] = [("no_sample", b""), ("./._a.clip.npy", b"not NumPy")]
    for number, (name, array) in enumerate(VIDEOS.items()):
        members.append((f"{name}.cls", b"3"))
        if number == 1:
            both = saved(NOTHING, clip=array, sound=array[:, :2] * 3)
            members.append((f"./{name}.npz", both))
        else:
            members.append((f"{name}.clip.npy", saved(array)))
            members.append((f"{name}.sound.npy", saved(array[:, :2] * 3)))
        members.append((f"{name}.pyd", pickle.dumps({"no": "data"})))
    members.append(("films/z.json", b"{}"))
    folder = write_tar(tmp_path / "in" / "deep.er" / "shard-0.tar", members).parent.parent
    assert written(folder, tmp_path / "out") == expected
    assert not holds_collection(folder)
    report = import_features(folder, tmp_path / "again")
    [left_out] = report.left_out
    assert left_out.endswith("shard-0.tar, 'films/z': no member ends in .npy or .npz")
    assert "left out 1 video: " in "\n".join(report.lines())


def test_several_kinds_of_files_in_a_folder(tmp_path: Path) -> None:
    for name, array in VIDEOS.items():
        (tmp_path / "numpy" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "numpy" / f"{name}.npy", array)
    apart = written(tmp_path / "numpy", tmp_path / "from numpy", feature_name="clip")
    [a, b, d] = VIDEOS.items()
    folder = write_tar(tmp_path / "in" / "1.tar", {f"{a[0]}.npy": saved(a[1])}).parent
    write_parquet(
        folder / "2.parquet", {"video": [b"film"], "id": [b[0]], "clip": lists([b[1].tolist()], 2)}
    )
    write_tar(folder / "3.tar", {f"{d[0]}.npy": saved(d[1])})
    assert written(folder, tmp_path / "out", feature_name="clip") == apart


def test_rows_of_frames(tmp_path: Path, expected: tuple[bytes, FeatureSet]) -> None:
    """In any order of frames, with videos over several row groups, and several in one."""
    table = frames_table(labels=[["x"]] * 33, score=np.arange(33.0))
    path = write_parquet(tmp_path / "in" / "a.parquet", table, row_group_size=7)
    assert written(path.parent, tmp_path / "out") == expected
    columns, order, backwards = rows_of_frames(), [], []
    start = 0
    for array in VIDEOS.values():
        order += list(range(len(array)))[::-1]
        backwards += list(range(start, start + len(array)))[::-1]
        start += len(array)
    shuffled = {
        name: lists([columns[name][row] for row in backwards], 1)
        for name in columns
        if name != "video"
    }
    for name in ("frame", "time"):
        more = {"video": columns["video"], name: np.array(order) * 2, **shuffled}
        write_parquet(path, more, row_group_size=12)
        assert written(path.parent, tmp_path / name) == expected


def test_a_row_group_is_read_once_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a video, and only one is kept: the passes look, find the ranges, and write."""
    parquet = pytest.importorskip("pyarrow.parquet")
    cells = lists([np.full((10, 4), number).tolist() for number in range(12)], 2)
    names = [f"v{number:02}" for number in range(12)]
    write_parquet(tmp_path / "t.parquet", {"id": names, "clip": cells}, row_group_size=5)
    take, groups = parquet.ParquetFile.read_row_group, []

    def counts(self: Any, group: int, **options: Any) -> Any:
        groups.append(group)
        return take(self, group, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counts)
    import_features(tmp_path, tmp_path / "out")
    assert groups == [0, 1, 2] * 3
    from pyseg.data import importing_parquet

    assert importing_parquet._row_group.cache_info().currsize == 0


@pytest.mark.parametrize("kind", ["lists", "fixed", "tensors"])
def test_rows_of_videos(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    videos = {name: array[:10] for name, array in VIDEOS.items()}
    for name, array in videos.items():
        path = tmp_path / "numpy" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    apart = written(tmp_path / "numpy", tmp_path / "from numpy", feature_name="clip")
    cells = [array.tolist() for array in videos.values()]
    column = lists(cells, 2, fixed=4 if kind == "fixed" else -1)
    if kind == "tensors":
        column = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.stack([*videos.values()]))
    table = {"video": pyarrow.array([*videos]).dictionary_encode(), "clip": column}
    path = write_parquet(tmp_path / "in" / "a.parquet", table, row_group_size=2)
    assert written(path.parent, tmp_path / "out") == apart


@pytest.mark.parametrize("kind", ["float16", "float64", "uint8"])
def test_types(tmp_path: Path, kind: str) -> None:
    frames = np.arange(40, dtype=kind).reshape(10, 4)
    (tmp_path / "numpy").mkdir()
    np.savez(tmp_path / "numpy" / "a.npz", clip=frames)
    apart = written(tmp_path / "numpy", tmp_path / "from numpy")
    column = lists(list(frames), 1, {"float16": "float16", "float64": "float64"}.get(kind, kind))
    path = write_parquet(tmp_path / "in" / "a.parquet", {"id": ["a"] * 10, "clip": column})
    assert written(path.parent, tmp_path / "out") == apart


GOOD = saved(np.ones((10, 4), np.float32))
LARGE = saved(np.ones((1000, 4), np.float32))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("z.npy", saved(np.array([[None]])))], r"x\.tar, 'z\.npy': .* Python objects"),
        ([("z.npy", pickle.dumps([1]))], r"x\.tar, 'z\.npy': expected a NumPy file, found a file"),
        ([("z.npy", GOOD[:60])], r"x\.tar, 'z\.npy': expected a NumPy file"),
        ([("z.npy", saved(np.zeros(3)))], r"x\.tar, 'z': expected features of shape \(T, N\)"),
        ([("z.npy", saved(np.zeros((3, 5))))], r"x\.tar, 'z': expected features \(4 numbers\)"),
        (
            [("good.npy", GOOD)],
            r"x\.tar, 'good': expected every video once, found 'good' in .*0\.t",
        ),
        ([("z.npy", GOOD), ("z.npy", GOOD)], r"x\.tar, 'z\.npy': expected every member once"),
        (
            [("z.npy", GOOD), ("z.features.npy", GOOD)],
            r"x\.tar, 'z\.features\.npy': expected features once, found it again",
        ),
        ([("z .npy", GOOD)], r"the id of the video: .* white space"),
        ([("z\n.npy", GOOD)], r"tar, 'z\\n': the id of the video: .* characters, found 'z\\n'$"),
    ],
)
def test_a_bad_sample(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    folder = write_tar(tmp_path / "in" / "0.tar", {"good.npy": GOOD}).parent
    write_tar(folder / "x.tar", members)
    with pytest.raises(DataError, match=message):
        import_features(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = import_features(folder, tmp_path / "out", on_error="skip")
    assert (report.videos, len(report.left_out)) == (1, 1)


@pytest.mark.parametrize("bad", [[b"no"], [GOOD, GOOD], [GOOD, GOOD, GOOD]])
def test_only_the_bad_sample_of_a_tar_is_left_out(tmp_path: Path, bad: list[bytes]) -> None:
    members = [("x.npy", GOOD), *(("y.npy", content) for content in bad), ("z.npy", GOOD)]
    write_tar(tmp_path / "a.tar", members)
    report = import_features(tmp_path, tmp_path / "out", on_error="skip")
    assert (report.videos, len(report.left_out)) == (2, 1)
    assert "a.tar, 'y.npy': expected " in report.left_out[0]


def test_every_cut_of_a_tar_is_an_error(tmp_path: Path) -> None:
    """`tarfile` takes a damaged or missing header for the end, and would lose videos silently."""
    path = write_tar(tmp_path / "in" / "a.tar", {"a.npy": GOOD, "b.npy": LARGE, "c.npy": GOOD})
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        [_, _, second, third] = tar.getmembers()
        end = tar.offset
    for size in (0, 100, 512, second.offset - 1, second.offset, second.offset + 99):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.tar: expected a whole tar file"):
            import_features(path.parent, tmp_path / "out")
    for size in (second.offset_data + 600, third.offset + 1, end):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.tar: .* found after '[bc]\.npy': "):
            import_features(path.parent, tmp_path / "out")
    damaged = bytearray(whole)
    damaged[second.offset + 5] ^= 1
    for content in (bytes(damaged), whole + whole, whole[:-1] + b"x"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="neither a member nor the end"):
            import_features(path.parent, tmp_path / "out")
    path.write_bytes(whole)
    assert import_features(path.parent, tmp_path / "out").videos == 3


@pytest.mark.parametrize("keep", [0, 1])
def test_a_tar_that_is_cut_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    path = write_tar(tmp_path / "in" / "a.tar", {"a.npy": GOOD, "b.npy": LARGE})

    def cut(*args: Any) -> Any:
        path.write_bytes(path.read_bytes()[: keep * 3000])
        return take(*args)

    take = importing._with_ranges
    monkeypatch.setattr(importing, "_with_ranges", cut)
    with pytest.raises(DataError, match=r"a\.tar.*: expected the same member as before, found: "):
        import_features(path.parent, tmp_path / "out")


def test_a_tar_that_leads_back(tmp_path: Path) -> None:
    """Some versions of `tarfile` read headers again and again if a size is negative."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("first"))  # 512 bytes; the next is at 512, its data at 2048
        member = tarfile.TarInfo("z.npy")
        member.pax_headers = {"size": "-1536"}
        tar.addfile(member)
    with pytest.raises(DataError, match=r"a\.tar: expected a whole tar file .* found"):
        import_features(tmp_path, tmp_path / "out")


def test_links_and_compressed_tars_are_refused(tmp_path: Path) -> None:
    link, sparse = tarfile.TarInfo("z.npy"), tarfile.TarInfo("z.npy")
    link.type, link.linkname = tarfile.LNKTYPE, "/etc/passwd"
    sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 50)}
    for member in (link, sparse):
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(member)
        with pytest.raises(DataError, match=r"a\.tar, 'z\.npy': expected a regular file"):
            import_features(tmp_path, tmp_path / "out")
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("z.npy"))
    with pytest.raises(DataError, match=r"a\.tar: expected a whole tar file that is not compr"):
        import_features(tmp_path, tmp_path / "out")
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    with pytest.raises(DataError, match=r"a\.tar\.gz: .* found \.gz: decompress it"):
        import_features(tmp_path, tmp_path / "out")
    (tmp_path / "a.tar.gz").rename(tmp_path / ".hidden.tar")
    with pytest.raises(MissingFileError, match=r"ends in \.npy, \.npz, \.tar or \.parquet"):
        import_features(tmp_path, tmp_path / "out")


def test_files_without_videos(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {})
    with pytest.raises(DataError, match=r"expected a video, found none; .*a\.tar has none"):
        import_features(tmp_path, tmp_path / "out")
    write_tar(tmp_path / "a.tar", {"a.mp4": b"film"})
    with pytest.raises(DataError, match=r"'a': no member ends in \.npy or \.npz"):
        import_features(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"video": ["a"], "y": [1.0]}, r"a column of lists of floating .*, found only video, y$"),
        ({"name": ["a"], "x": [[[1.0]]]}, r"expected a column video or id of text, found neither$"),
        ({"video": ["a"], "y": [1.0], "x": [[1]]}, r" in the column x, found list<\w+: int64>$"),
        (
            {"id": ["a"], "x": [[[[1.0]]]]},
            r"these \(a video\) in the column x, found list<",
        ),
        ({"id": [3], "x": [[1.0]]}, r"a column video or id of text, found id of int64$"),
        (
            {"id": ["a"], "video": ["b"], "x": [[1.0]]},
            r"or id, found text in both: leave one",
        ),
        ({"id": ["a "], "x": [[1.0]]}, r"rows 0 to 0: the id of the video: .* white space"),
        ({"video": ["a", None], "x": [[[1.0]]] * 2}, r"row 1: .* expected text, found None"),
        (
            {"id": ["a", "b", "a"], "x": [[1.0]] * 3},
            r"rows 2 to 2: .*, rows 0 to 0, too; the rows of a video have to f",
        ),
        (
            {"id": ["a", "a"], "x": [[[1.0]]] * 2},
            r"row 1: expected every video once, .* row 0, too$",
        ),
        ({"id": ["a"] * 2, "x": [[1.0], [1.0, 2.0]]}, r"lists of one length in x, found 1 and 2"),
        ({"id": ["a"] * 3, "x": [[1.0], [2.0], None]}, r"row 2: .* missing value in x"),
        ({"id": ["b", "a", "a"], "x": [[1.0]] * 2 + [[None]]}, r"row 2: .* missing value in x"),
        ({"id": ["a", "b"], "x": [[[1.0]], None]}, r"row 1: .* missing value in x"),
        ({"id": ["a", "b"], "x": [[[1.0]], [[1.0], None]]}, r"row 1: .* missing value in x"),
        ({"id": ["a", "b"], "x": [[[1.0]], [[None]]]}, r"row 1: .* missing value in x"),
        ({"id": ["a", "b"], "x": [[[1.0]], []]}, r"row 1: expected features of shape"),
        ({"id": ["a", "b"], "x": [[[1.0]], [[1.0, 2.0]]]}, r"row 1: expected x \(1 numbers\)"),
        ({"id": ["a"] * 2, "x": [[1.0]] * 2, "time": [1, 1]}, r"at another time, found 1 again"),
        ({"id": ["a"] * 2, "x": [[1.0]] * 2, "frame": [1, None]}, r"row 1: .* value in frame"),
        ({"id": ["a"] * 2, "x": [[1.0]] * 2, "time": ["1", "2"]}, r"numbers or times in time"),
        (
            {"id": ["a"] * 2, "x": [[1.0]] * 2, "time": [float("nan"), 2.0]},
            r"at another time, found nan",
        ),
    ],
)
def test_a_bad_table(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = write_parquet(tmp_path / "in" / "t.parquet", columns, row_group_size=2)
    with pytest.raises(DataError, match=r"t\.parquet.*" + message):
        import_features(path.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_table(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in" / "t.parquet", frames_table(), compression="none")
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"t\.parquet: expected a Parquet file, found: "):
            import_features(path.parent, tmp_path / "out")
    write_parquet(path, frames_table(), compression="none", write_page_checksum=True)
    number = np.float32(VIDEOS["a"][0, 0]).tobytes()
    path.write_bytes(path.read_bytes().replace(number, b"\0\0\0\0", 1))
    with pytest.raises(DataError, match=r"rows 0 to 9: expected a Parquet file, found: .*CRC"):
        import_features(path.parent, tmp_path / "out")


def test_wrong_numbers_of_rows(tmp_path: Path) -> None:
    """The footer says that there are 3, byte 6 in it, in a group of 2, byte 4, and of 1, byte 2."""
    cells = lists([np.full((10, 4), number).tolist() for number in range(3)], 2)
    columns = {"id": ["a", "b", "c"], "clip": cells}
    options = {"row_group_size": 2, "store_schema": False}
    path = write_parquet(tmp_path / "in" / "t.parquet", columns, **options)
    whole, right = path.read_bytes(), written(path.parent, tmp_path / "out")
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    places = [place for place in range(footer, len(whole) - 8) if whole[place] in (4, 6)]
    refused = 0
    for number, place in itertools.product((2, 6), places):
        path.write_bytes(whole[:place] + bytes([number]) + whole[place + 1 :])
        out = tmp_path / f"{number} {place}"
        try:
            assert written(path.parent, out) == right, (number, place)
        except DataError:
            refused += 1
    assert refused > 4


def test_a_table_that_is_mended(tmp_path: Path) -> None:
    """The row group that was kept is not that of the new file."""
    path = write_parquet(tmp_path / "in" / "t.parquet", {"id": ["a", "b"], "x": [[[1.0]], None]})
    with pytest.raises(DataError, match=r"row 1: expected no missing value"):
        import_features(path.parent, tmp_path / "out")
    write_parquet(path, {"id": ["a", "b"], "x": [[[1.0]], [[2.0]]]})
    report = import_features(path.parent, tmp_path / "out")
    assert report.features is not None
    assert report.features.ranges == ((1.0, 2.0),)


def test_records_beside_other_files_are_a_collection(tmp_path: Path) -> None:
    """AudioSet's records lie in folders beside the compressed tar file that had them."""
    (tmp_path / "eval").mkdir()
    for name in ("features.tar.gz", "eval/a.tfrecord"):
        (tmp_path / name).touch()
    assert holds_collection(tmp_path)
    (tmp_path / "features.tar").touch()
    assert not holds_collection(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyseg.data.importing_parquet", raising=False)
    with pytest.raises(UserError, match=r"\.parquet file needs pyarrow: pip install .*\[tables\]"):
        import_features(tmp_path, tmp_path / "out", on_error="skip")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_interrupted_import_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from pyseg.data import writing

    names = [f"v{number}" for number in range(6)]
    if kind == "tar":
        path = write_tar(tmp_path / "in" / "a.tar", {f"{name}.npy": GOOD for name in names})
    else:
        cells = lists([np.ones((10, 4)).tolist()] * 6, 2)
        path = write_parquet(tmp_path / "in" / "a.parquet", {"id": names, "clip": cells})
    monkeypatch.setattr(writing, "SHARD_BYTES", 80)
    read: list[str] = []
    take = importing._Video.read

    def stops(self: Any, which: Any) -> Any:
        if len(read) == stop:
            raise KeyboardInterrupt
        read.append(self.source.id)
        return take(self, which)

    monkeypatch.setattr(importing._Video, "read", stops)
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        import_features(path.parent, tmp_path / "out", ranges=(0, 2))
    stop, before = -1, list(read)
    read.clear()
    import_features(path.parent, tmp_path / "out", ranges=(0, 2))
    assert before == names[:4]
    assert read[0] != names[0]
    assert read[-1] == names[-1]
    import_features(path.parent, tmp_path / "whole", ranges=(0, 2))
    for shard in sorted((tmp_path / "whole").iterdir()):
        assert shard.read_bytes() == (tmp_path / "out" / shard.name).read_bytes()
