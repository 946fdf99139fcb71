"""A run's folder has one training at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from vitrail.settings import Settings
from vitrail.settings.layers import to_yaml
from vitrail.train.folder import CALL, LOCK, SETTINGS, can_resume, clear, create_folder, lock, locked


def _hold(folder: Path, pipe: Connection) -> None:
    with locked(folder):
        pipe.send("held")
        pipe.recv()


@contextmanager
def another_process(folder: Path) -> Iterator[multiprocessing.Process]:
    """A process that trains in the folder."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(folder, theirs))
    process.start()
    assert ours.recv() == "held"
    try:
        yield process  # type: ignore[misc]
    finally:
        if process.is_alive():
            ours.send("end")
        process.join()


SAID = r'^another process is training in ".*run"; wait until it ends, or stop it, or choose another --out$'


def test_a_folder_that_was_made_for_a_failed_run_goes_too(tmp_path: Path) -> None:
    """Or an empty runs/ would stand among the class folders of `cd PHOTOS; vitrail train .`."""

    def fails(folder: Path) -> None:
        with pytest.raises(ValueError, match="early"), create_folder(folder):
            raise ValueError("early")

    fails(tmp_path / "runs" / "first")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    fails(tmp_path / "runs" / "first")
    assert (tmp_path / "runs").exists()


def test_a_folder_has_one_training_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / SETTINGS).write_text(to_yaml(Settings()))
    (folder / CALL).write_text("{}")
    with another_process(folder):
        for way in (lambda: lock(folder), lambda: can_resume(folder, {}), lambda: clear(folder)):
            with pytest.raises(ValueError, match=SAID):
                way()
        with pytest.raises(ValueError, match=SAID), locked(folder):
            raise AssertionError("two of them")
        assert (folder / CALL).exists()
    assert not (folder / LOCK).exists()
    with locked(folder):
        assert (folder / LOCK).exists()
    assert can_resume(folder, {}) is False
    clear(folder)
    assert not folder.exists()


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.kill()
        process.join()
        assert (tmp_path / LOCK).exists(), "it had no time to take it away"
        with locked(tmp_path):
            pass


def test_a_new_folder_is_locked_and_goes_again_where_nothing_came_of_it(tmp_path: Path) -> None:
    def fails() -> None:
        with create_folder(tmp_path / "run"):
            assert (tmp_path / "run" / LOCK).exists()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not (tmp_path / "run").exists()
    with create_folder(tmp_path / "run"):
        (tmp_path / "run" / "model.safetensors").touch()
    assert not (tmp_path / "run" / LOCK).exists()
