"""Images of any number in chunks: the same names and pixels wherever the files are, and no image twice."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.decode import eval_view
from vitrail.deploy import image_chunks
from vitrail.deploy.image_chunks import Chunk, ImageNames, NameSet, digests, open_images, pack, read_view, unpack
from vitrail.settings import Preprocessing

VIEW = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images in two folders, a hidden file and a note."""
    root = tmp_path / "photos"
    for number in range(12):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (root / ".hidden.png").write_bytes(b"")
    (root / "README.md").write_text("what these are")
    return root


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty folder of fsspec's file system in memory."""
    system = fsspec.filesystem("memory")
    yield "memory://photos"
    if system.exists("/photos"):
        system.rm("/photos", recursive=True)


def names_of(images: ImageNames, rows: int = 5, done: frozenset[str] = frozenset()) -> list[str]:
    chunks = list(images.chunks(rows, lambda names: [name not in done for name in names]))
    assert [unpack(pack(chunk)) for chunk in chunks] == chunks
    return [name for chunk in chunks for name in chunk.names]


def views_of(chunks: Iterator[Chunk]) -> dict[str, object]:
    return {name: read_view(item, VIEW) for chunk in chunks for name, item in chunk.items()}


def write_table(path: Path, ids: list[object], *, groups: int = 4, image: str = "image") -> None:
    rows = [{"id": one, image: picture(number)} for number, one in enumerate(ids)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=groups)


@hypothesis_settings(max_examples=20)
@given(
    known=st.lists(st.text(max_size=4), max_size=30),
    asked=st.lists(st.text(max_size=4), max_size=30),
)
def test_a_set_of_names_is_a_set(known: list[str], asked: list[str]) -> None:
    names = NameSet([digests(known[:10]), digests(known[10:])])
    assert len(names) == len(set(known))
    assert names.holds(digests(asked)).tolist() == [name in set(known) for name in asked]
    assert len(names.repeated) == sum(known.count(name) > 1 for name in set(known))


def test_a_folder_is_listed_as_without_ray(folder: Path) -> None:
    below = [f"a/{n}.png" for n in range(0, 12, 2)] + [f"b/{n}.png" for n in range(1, 12, 2)]
    assert names_of(open_images([str(folder)], relative=True)) == below
    assert names_of(open_images([str(folder)], relative=False)) == [f"{folder}/{n}" for n in (*below, "README.md")]
    (folder.parent / "list.txt").write_text(f"{folder}/a/2.png\n\n{folder}/b/3.png\n")
    assert names_of(open_images([f"{folder.parent}/list.txt"], relative=True)) == [f"{folder}/a/2.png", f"{folder}/b/3.png"]


def test_a_folder_behind_a_url_has_the_same_images(folder: Path, memory: str) -> None:
    system = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/photos/{path.relative_to(folder)}", path.read_bytes())
    there, here = open_images([memory], relative=True), open_images([str(folder)], relative=True)
    assert names_of(there) == names_of(here)
    assert names_of(open_images([memory], relative=False))[0] == f"{memory}/a/0.png"
    everything = [lambda names: [True] * len(names)] * 2
    found, expected = views_of(there.chunks(5, everything[0])), views_of(here.chunks(5, everything[1]))
    assert found.keys() == expected.keys()
    for name, view in found.items():
        assert torch.equal(view, expected[name]), name  # type: ignore[arg-type]


@hypothesis_settings(max_examples=20)
@given(rows=st.integers(1, 15), done=st.sets(st.integers(0, 11)))
def test_what_is_there_is_left_out_and_the_rest_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, rows: int, done: set[int]
) -> None:
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        (root / f"{number}.png").touch()
    write_table(root.parent / "t.parquet", list(range(12)), groups=5)
    left = [str(n) for n in range(12) if n not in done]
    files, table = open_images([str(root)], relative=True), open_images([f"{root.parent}/t.parquet"], relative=True)
    assert names_of(files, rows, frozenset(f"{n}.png" for n in done)) == [f"{n}.png" for n in left]
    assert names_of(table, rows, frozenset(map(str, done))) == left


def test_a_table_gives_the_pixels_of_its_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", [f"img{n}" for n in range(11)])
    images = open_images([str(tmp_path / "t.parquet")], relative=True)
    wanted = {"img1", "img6", "img7", "img10"}
    found = views_of(images.chunks(3, lambda names: [name in wanted for name in names]))
    assert found.keys() == wanted
    for name, view in found.items():
        assert torch.equal(view, eval_view(picture(int(name[3:])), VIEW)), name  # type: ignore[arg-type]


def test_images_of_the_hub_are_structs(tmp_path: Path) -> None:
    fields = [{"bytes": picture(0), "path": "a.png"}, {"bytes": None, "path": "gone.png"}, None]
    pq.write_table(pa.Table.from_pylist([{"key": n, "img": field} for n, field in enumerate(fields)]), tmp_path / "t.parquet")
    images = open_images([str(tmp_path)], relative=True, columns=("key", "img"))
    found = views_of(images.chunks(3, lambda names: [True] * len(names)))
    assert torch.equal(found["0"], eval_view(picture(0), VIEW))  # type: ignore[arg-type]
    assert found["1"] == found["2"] == "its field in the table is empty"


def test_storage_that_fails_is_tried_again_and_a_missing_file_is_not(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/photos/a.png", picture(0))
    real, calls = fsspec.filesystem("memory").cat_file, []
    monkeypatch.setattr(image_chunks, "_WAIT_S", 0.0)

    def flaky(self: object, path: str) -> bytes:
        calls.append(path)
        if len(calls) < 3:
            raise TimeoutError("slow down")
        return real(path)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", flaky)
    assert torch.equal(read_view(f"{memory}/a.png", VIEW), eval_view(picture(0), VIEW))  # type: ignore[arg-type]
    assert len(calls) == 3
    assert str(read_view(f"{memory}/none.png", VIEW)).startswith("can't be opened (")
    assert len(calls) == 4
    calls[:] = ["x"] * -100
    monkeypatch.setattr(image_chunks, "_TRIES", 2)
    with pytest.raises(ConnectionError, match=r"a\.png can't be read, in 2 tries: TimeoutError: slow down"):
        read_view(f"{memory}/a.png", VIEW)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ("id", "picture"),
            'has no column "picture", but id, image; name the columns of ids and of images: --columns ID,IMAGE',
        ),
        (("ids", "image"), 'has no column "ids", but id, image; .*; did you mean "id"?'),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path: Path, columns: tuple[str, str], message: str) -> None:
    write_table(tmp_path / "t.parquet", [1, 2])
    with pytest.raises(ValueError, match=message):
        names_of(open_images([str(tmp_path / "t.parquet")], relative=True, columns=columns))


def test_what_can_t_be_listed_is_one_line(tmp_path: Path, folder: Path, memory: str) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    write_table(tmp_path / "empty id.parquet", [1, None])
    for data, message in (
        ([], "no image is named"),
        ([str(tmp_path / "broken.parquet")], "is no Parquet table"),
        ([str(tmp_path / "none.parquet")], "does not exist"),
        ([str(tmp_path / "empty id.parquet")], "has a row without an id"),
        ([str(folder), str(tmp_path / "broken.parquet")], "can't be named together"),
        ([memory], "holds no files"),
        (["nosuch://bucket/photos"], "can't be opened|needs another package"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            names_of(open_images(data, relative=True))
        assert "\n" not in str(caught.value)
