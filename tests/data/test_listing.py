from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.listing import (
    MARKER,
    SETTINGS_HEADER,
    VENDOR,
    entries,
    files_under,
    folders,
    is_checkpoint,
    is_output,
    is_run,
    mark_output,
    natural,
    written_files,
)
from vitrail.settings import Settings
from vitrail.settings.layers import to_yaml


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def a_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(Settings()), encoding="utf-8")
    return touch(folder, "confusion.png", "checkpoints/step_1/model.safetensors")


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1))
def test_natural_order_is_an_order(words: list[str]) -> None:
    backwards = list(reversed(words))
    assert sorted(backwards, key=natural) == sorted(words, key=natural)


def test_what_systems_and_programs_leave_behind(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", ".DS_Store", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/Thumbs.db", "sub/b.png")
    for name in VENDOR | {"@eaDir", "__MACOSX", "System Volume Information", "$RECYCLE.BIN"}:
        touch(tmp_path, f"sub/{name}/c.png", f"other/{name}")
    assert folders(tmp_path) == ["other", "sub"]
    assert list(files_under(tmp_path)) == ["a.png", "sub/b.png"]
    assert entries(tmp_path / "other") == []


def test_files_are_listed_in_natural_order_and_through_links(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "x10.png", "x9.png", "deep/er/1")
    (root / "again").symlink_to(root / "deep")
    (root / "deep" / "ring").symlink_to(root)
    (root / "gone.jpg").symlink_to(root / "nowhere")
    assert list(files_under(root)) == ["again/er/1", "deep/er/1", "gone.jpg", "x9.png", "x10.png"]
    assert list(files_under(root, "deep")) == [
        "deep/er/1",
        *(f"deep/ring/{file}" for file in ("gone.jpg", "x9.png", "x10.png")),
    ]


def test_the_header_is_the_one_that_runs_are_written_with() -> None:
    assert to_yaml(Settings()).startswith(SETTINGS_HEADER)


def test_a_run_is_no_data_from_its_first_file_on(tmp_path: Path) -> None:
    root = touch(tmp_path, "cat/1.png", "runs/notes.md")
    a_run(root / "runs" / "first")
    (root / "runs" / "second").mkdir()
    (root / "runs" / "second" / "call.json").write_text(json.dumps({"asked": {}, "recipe": None}))
    a_run(root / "cat" / "deep" / "third")
    assert is_run(root / "runs" / "second")
    assert folders(root) == ["cat"]
    assert list(files_under(root)) == ["cat/1.png"]


def test_a_checkpoint_s_folder_is_no_data(tmp_path: Path) -> None:
    root = touch(tmp_path, "cat/1.png", "converted/config.json", "converted/model.safetensors", "other/config.json")
    assert is_checkpoint(root / "converted")
    assert folders(root) == ["cat", "other"]


def test_only_what_was_written_is_left_out(tmp_path: Path) -> None:
    """Pictures that were written among photographs go, the photographs stay."""
    root = touch(tmp_path, "cat/1.png", "cat/1-relevance.png", "explained/a.png", "explained/a.npy", "explained/curves/b.png")
    mark_output(root / "cat", [root / "cat/1-relevance.png"], command="explain")
    mark_output(root / "explained", [root / "explained/a.png"], command="explain")
    assert folders(root) == ["cat", "explained"]
    mark_output(root / "explained", [root / "explained/a.npy"], command="explain")
    mark_output(root / "explained/curves", [root / "explained/curves/b.png"], command="explain")
    assert folders(root) == ["cat"]
    assert list(files_under(root)) == ["cat/1.png"]
    assert written_files(root / "explained") == {"a.png", "a.npy"}
    touch(root, "explained/own.jpg")
    assert list(files_under(root)) == ["cat/1.png", "explained/own.jpg"]


def test_a_run_folder_needs_no_marker(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    mark_output(run, [run / "confusion.png"], command="evaluate")
    assert not (run / MARKER).exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": 3}', "null", '{"files": [[]]}', "\udcff"])
def test_a_marker_that_can_t_be_read_hides_nothing(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "cat/1.png")
    (tmp_path / "cat" / MARKER).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert list(files_under(tmp_path)) == ["cat/1.png"]


@pytest.mark.parametrize(
    "files", [["a.png"], ["a"], ["a.md", "b.xyz"], ["runs/x", "a.png"], ["config.yaml"], ["call.json"], ["sub/a.jpg"], ["a.md"]]
)
def test_what_is_not_ours_is_data(tmp_path: Path, files: list[str]) -> None:
    folder = touch(tmp_path / "class", *files)
    if "config.yaml" in files:
        (folder / "config.yaml").write_text("model: resnet50\n")
    assert not is_output(folder)


def test_a_run_that_was_killed_as_it_began_is_ours(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "runs/first/.lock")
    assert folders(tmp_path) == ["cat"]


def test_an_empty_folder_is_not_ours(tmp_path: Path) -> None:
    assert not is_output(tmp_path)
    assert not is_output(tmp_path / "nowhere")
