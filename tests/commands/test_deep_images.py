"""Images of more than 8 bits, or with bands that are no colours, from `check` to `explain`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from command_line import TINY, Typed
from vitrail.data.augment import normalise
from vitrail.data.decode import eval_view
from vitrail.train.folder import read_settings
from vitrail.weights import load

SMALL = ("--model", "Ti/8", "--model.img_size", "16", "--model.weights", "none", "--train.batch_size", "8")


def write_bands(root: Path, kind: type, bands: int, *, high: int, count: int = 12) -> Path:
    """Two classes of TIFFs, told apart by how bright their last band is."""
    rng = np.random.default_rng(0)
    for name, more in (("dim", 0), ("bright", high // 2)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            values = rng.integers(0, high // 2, (24, 24, bands)).astype(kind)
            values[:, :, -1] += kind(more)
            colour = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None} if bands > 1 else {}
            tifffile.imwrite(root / name / f"{i}.tif", values if bands > 1 else values[:, :, 0], **colour)
    return root


@pytest.mark.parametrize(
    ("kind", "bands", "high"),
    [(np.uint8, 5, 200), (np.uint16, 4, 10_000), (np.uint16, 13, 10_000), (np.int16, 2, 3000), (np.uint16, 1, 4095)],
)
def test_bands_and_depths_from_check_to_explain(vitrail: Typed, tmp_path: Path, kind: type, bands: int, high: int) -> None:
    photos, run = write_bands(tmp_path / "scenes", kind, bands, high=high), tmp_path / "run"
    found = json.loads(vitrail("check", photos, "--json").out)
    assert found["images"] == 24
    assert not {finding["finding"] for finding in found["findings"]} & {"corrupt", "bands", "not-an-image"}
    deep = kind is not np.uint8
    assert set(found["values"]) == (set(found["counts"]) if deep else set())
    model = [
        "--model",
        "Ti/8",
        "--model.img_size",
        "16",
        "--model.weights",
        "none",
        "--train.steps",
        "2",
        "--train.batch_size",
        "8",
    ]
    said = vitrail("train", photos, *TINY, *model, "--data.memory_gb", "0", "--data.workers", "0", "--out", run)
    assert said.code == 0, said.err
    assert ("note: values of " in said.out) is deep
    saved = json.loads((run / "config.json").read_text())["vitrail"]
    assert saved["model"]["in_channels"] == bands
    images = saved["preprocessing"]
    assert len(images["mean"]) == len(images["std"]) == bands
    if deep:
        low, top = images["range"]
        assert 0 <= low < high / 100
        assert 0.95 * high < top <= 1.01 * high
        assert read_settings(run).data.range == (low, top)
    else:
        assert images["range"] is None
    assert vitrail("evaluate", run).code == 0
    files = [photos / "dim" / "0.tif", photos / "bright" / "1.tif"]
    answers = json.loads(vitrail("predict", run, *files, "--json").out)
    loaded = load(run)
    assert loaded.preprocessing is not None
    assert list(loaded.preprocessing.mean) == images["mean"]
    view = eval_view(files[0], loaded.preprocessing)
    with torch.no_grad():
        logits = loaded(normalise(view[None], loaded.preprocessing))
    calibration = loaded.card.calibration  # None where an image in ten gives no validation split
    probabilities = (logits / (1.0 if calibration is None else calibration.temperature)).softmax(-1)
    assert answers[0]["probability"] == pytest.approx(probabilities.max().item(), abs=1e-4)
    assert vitrail("explain", run, files[0], "--steps", "2", "--out", tmp_path / "pictures").code == 0
    tuned = vitrail(
        "train", photos, "--weights", run, "--train.steps", "1", "--train.batch_size", "8", "--out", tmp_path / "tuned"
    )
    assert tuned.code == 0, tuned.err
    assert json.loads((tmp_path / "tuned/config.json").read_text())["vitrail"]["preprocessing"]["range"] == images["range"]


def test_a_range_is_a_setting(vitrail: Typed, tmp_path: Path) -> None:
    photos = write_bands(tmp_path / "scenes", np.uint16, 1, high=1000)
    for given, kept in (("[100, 900]", (100, 900)), ("full", "full")):
        assert vitrail("train", photos, *TINY, *SMALL, "--data.range", given, "--out", tmp_path / given[:4]).code == 0
        assert read_settings(tmp_path / given[:4]).data.range == kept
    said = vitrail("train", photos, *SMALL, "--data.range", "[9, 9]", "--out", tmp_path / "no")
    assert (said.code, said.err) == (2, "vitrail: data.range [9.0, 9.0] must be two numbers, the smaller first\n")
    said = vitrail("train", photos, *SMALL, "--data.range", "wide", "--out", tmp_path / "no")
    assert (said.code, said.err) == (
        2,
        'vitrail: data.range "wide": it takes one of auto, full, or two numbers, as in [0.5, 1.0]\n',
    )
    said = vitrail("train", photos, *SMALL, "--model.in_channels", "5", "--out", tmp_path / "no")
    assert "model.in_channels 5 does not fit scenes, whose images have 1; use 1 or 3" in said.err


def test_a_model_without_a_range_says_that_it_sees_few_levels(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    photos = write_bands(tmp_path / "scenes", np.uint16, 1, high=1000)
    said = vitrail("predict", run, photos / "dim", "--json")
    assert said.code == 0
    assert re.search(
        r"^vitrail: values of uint16 from \d+ to \d+ of 0 to 65535, where they are 2 of 256 levels, .*; the model was", said.err
    )
    assert len(json.loads(said.out)) == 12
    assert vitrail("predict", run, photos / "dim" / "0.tif", "--csv").err.count("\n") == 1
    Image.effect_noise((28, 28), 50).save(tmp_path / "plain.png")
    assert vitrail("predict", run, tmp_path / "plain.png").err == ""


def test_values_outside_of_a_models_range_are_reported(vitrail: Typed, tmp_path: Path) -> None:
    photos, run = write_bands(tmp_path / "scenes", np.uint16, 1, high=1000), tmp_path / "run"
    assert vitrail("train", photos, *TINY, *SMALL, "--out", run).code == 0
    others = write_bands(tmp_path / "others", np.uint16, 1, high=60_000)
    low, high = read_settings(run).data.range
    message = rf"values of uint16 from .*; the model was trained with data\.range {low:g} to {high:g}, and values outside of it"
    assert re.search(message, vitrail("predict", run, others / "dim").err)
    assert re.search(message, vitrail("evaluate", run, others).err)
    assert vitrail("predict", run, photos / "dim" / "0.tif").err == ""
    tuned = vitrail("train", others, "--weights", run, "--train.steps", "1", "--train.batch_size", "8", "--out", tmp_path / "t")
    assert f"{low:g} to {high:g}, as the weights were trained with, becomes black to white (data.range)" in tuned.out
    assert f"note: most of the values are outside of {low:g} to {high:g}, and become black or white" in tuned.out


def test_a_range_that_leaves_few_levels_is_warned_of(vitrail: Typed, tmp_path: Path) -> None:
    photos = write_bands(tmp_path / "scenes", np.uint16, 1, high=1000)
    for seed, name in enumerate(("dim", "bright")):  # one image of each class has all values
        values = np.random.default_rng(seed).integers(0, 65536, (24, 24))
        tifffile.imwrite(photos / name / "all.tif", values.astype(np.uint16))
    said = vitrail("check", photos)
    few = r"few-levels .* 0 to 65535 is wide: most values lie from \d+ to \d+, which become \d of 256 levels"
    assert re.search(few, said.out)
    found = json.loads(vitrail("check", photos, "--json").out)["values"]["train"]
    assert found["range"] == "full"
    assert found["warning"].startswith("0 to 65535 is wide: most values lie from ")
    said = vitrail("train", photos, *TINY, *SMALL, "--out", tmp_path / "run")
    assert f"note: {found['warning']}" in said.out
    said = vitrail("train", photos, *TINY, *SMALL, "--data.range", "[0, 1000]", "--out", tmp_path / "narrow")
    assert "is wide" not in said.out


def test_bands_that_do_not_fit_are_told(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    photos = write_bands(tmp_path / "scenes", np.uint16, 5, high=1000)
    said = vitrail("predict", run, photos / "dim" / "0.tif")
    assert said.code == 1
    assert "0.tif: it has 5 bands, and the model takes 1 (model.in_channels)" in said.err
    said = vitrail("train", photos, *TINY, "--model.weights", "none", "--model.in_channels", "3", "--out", tmp_path / "no")
    assert (said.code, said.err) == (2, "vitrail: model.in_channels 3 does not fit scenes, whose images have 5; use 5\n")
