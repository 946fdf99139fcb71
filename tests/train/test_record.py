"""Record of a run: notes and machine at each start, images and time at the end."""

from __future__ import annotations

import shutil
from pathlib import Path

import vitrail
from cases import ImageFolder
from vitrail.weights.provenance import read_provenance


def test_a_run_keeps_where_and_how_long_also_when_resumed(image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"train": {"cat": 6, "dog": 4}, "val": {"cat": 2, "dog": 2}})
    run = vitrail.train(
        photos,
        recipe="from-scratch",
        out=tmp_path / "run",
        model={"name": "Ti/16", "img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2},
        train={"steps": 2, "batch_size": 4},
        data={"workers": 0},
    )
    found = read_provenance(run.folder)
    assert (found.steps, found.images, found.class_counts) == (2, {"train": 10, "val": 4}, (6, 4))
    assert found.ended is not None
    assert found.parameters == sum(each.numel() for each in vitrail.load(run.folder).parameters())
    assert [start.step for start in found.starts] == [0]
    assert any("10 training images, 2 classes" in note for note in found.notes)

    (run.folder / "evaluation.json").unlink()  # as if it had been stopped before the scores
    vitrail.resume(run.folder)
    again = read_provenance(run.folder)
    assert [start.step for start in again.starts] == [0, 2]
    assert again.notes == found.notes
    shutil.rmtree(run.folder)
