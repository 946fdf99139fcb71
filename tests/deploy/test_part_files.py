"""A folder of parts: each whole or not there, the same name for the same images, and settings that hold for all."""

from __future__ import annotations

import csv
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.listing import is_output
from vitrail.deploy import part_files
from vitrail.deploy.image_chunks import digests
from vitrail.deploy.part_files import PartFolder

SETTINGS = {"results": "predictions", "top": 1}


def table(names: list[str], errors: dict[str, str] | None = None) -> pa.Table:
    reasons = [(errors or {}).get(name) for name in names]
    return pa.table({"path": pa.array(names, pa.string()), "error": pa.array(reasons, pa.string())})


def write(parts: PartFolder, names: list[str], errors: dict[str, str] | None = None) -> None:
    parts.write(parts.part_name(names), table(names, errors))


@pytest.mark.parametrize("format", ["parquet", "csv"])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_parts_are_counted_and_gone_on_with(tmp_path: Path, format: str, where: str) -> None:
    place = str(tmp_path / "out") if where == "local" else f"memory://{tmp_path.name}/{format}"
    parts = PartFolder.of(place, format)
    parts.begin(SETTINGS, overwrite=False)
    write(parts, ["a", 'b,\r\n"c"'], {"a": "it is\nbroken"})
    write(parts, ["d"])
    write(parts, ["d"])  # the same images again
    assert parts.has(parts.part_name(["d"]))
    assert not parts.has(parts.part_name(["e"]))
    parts = PartFolder.of(place, format)
    parts.begin(SETTINGS, overwrite=False)
    assert parts.computed().holds(digests(["a", 'b,\r\n"c"', "d", "e"])).tolist() == [True, True, True, False]
    done = parts.summary()
    assert (done.images, done.failed, done.files) == (3, 1, 2)
    assert done.first_failed == (("a", "it is\nbroken"),)
    with pytest.raises(ValueError, match=r"begun with other settings: top \(1, now 2\); run the first command again"):
        parts.begin(SETTINGS | {"top": 2}, overwrite=False)
    parts.begin(SETTINGS | {"top": 2}, overwrite=True)
    assert parts.summary().images == 0


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"holds other files, such as holiday\.jpg; name another folder"):
        PartFolder.of(str(tmp_path), "parquet").begin(SETTINGS, overwrite=True)
    assert (tmp_path / "holiday.jpg").exists()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        PartFolder.of(str(tmp_path / "holiday.jpg"), "parquet").begin(SETTINGS, overwrite=False)
    with pytest.raises(ValueError, match='format "json" is none of parquet, csv'):
        PartFolder.of(str(tmp_path), "json")


def test_an_image_in_two_parts_is_an_error(tmp_path: Path) -> None:
    parts = PartFolder.of(str(tmp_path / "out"), "parquet")
    parts.begin(SETTINGS, overwrite=False)
    write(parts, ["a", "b"])
    write(parts, ["b", "c"])
    with pytest.raises(ValueError, match="has 1 images more than once"):
        parts.summary()


def test_half_a_part_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = PartFolder.of(str(tmp_path / "out"), "parquet")
    parts.begin(SETTINGS, overwrite=False)

    def killed(draft: Path, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(part_files, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            write(parts, ["a"])
    assert parts.summary().images == 0
    (tmp_path / "out" / ".part-0.parquet.1234.part").write_bytes(b"half")  # of a process that was killed
    (tmp_path / "out" / ".part-0.parquet.tries").write_bytes(b"3")
    parts.begin(SETTINGS, overwrite=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_vitrail.json"]
    (tmp_path / "out" / "part-0.parquet").write_bytes(b"damaged by somebody")
    with pytest.raises(ValueError, match=r"part-0\.parquet can't be read .*; remove it, and run the command again"):
        parts.computed()


def test_a_part_that_kills_workers_ends_the_command(tmp_path: Path) -> None:
    parts = PartFolder.of(str(tmp_path / "out"), "parquet")
    parts.begin(SETTINGS, overwrite=False)
    part = parts.part_name(["a", "b"])
    for _ in range(5):
        parts.try_again(part, ["a", "b"])
    with pytest.raises(ValueError, match="5 workers died at the 2 images from a to b"):
        parts.try_again(part, ["a", "b"])
    write(parts, ["a", "b"])
    parts.try_again(part, ["a", "b"])


@given(names=st.lists(st.text(), min_size=1, unique=True), more=st.text())
def test_a_part_is_named_by_its_images(names: list[str], more: str) -> None:
    parts = PartFolder("/nowhere", "csv")
    assert parts.part_name(names) == parts.part_name(tuple(names))
    assert parts.part_name(names) != parts.part_name([*names, more])


def test_the_folder_is_no_data(tmp_path: Path) -> None:
    parts = PartFolder.of(str(tmp_path / "out"), "csv")
    parts.begin(SETTINGS, overwrite=False)
    write(parts, ["a"])
    parts.mark("predict")
    assert is_output(tmp_path / "out")


def test_readers_take_the_folder_as_one_table(tmp_path: Path) -> None:
    parts = PartFolder.of(str(tmp_path / "out"), "parquet")
    parts.begin(SETTINGS, overwrite=False)
    for names in (["a", "b"], ["c"]):
        write(parts, names)
    parts.mark("predict")
    assert sorted(pq.read_table(tmp_path / "out")["path"].to_pylist()) == ["a", "b", "c"]


def test_csv_is_that_of_the_command(tmp_path: Path) -> None:
    parts = PartFolder.of(f"memory://{tmp_path.name}", "csv")
    row = {"path": "a", "labels": ["x", "y"], "probability": 0.25, "outlier": True, "error": None}
    parts.write("part-1.csv", pa.Table.from_pylist([row]))
    lines = fsspec.filesystem("memory").cat_file(f"/{tmp_path.name}/part-1.csv").decode().splitlines()
    assert list(csv.reader(lines)) == [list(row), ["a", "x;y", "0.250000", "1", ""]]
