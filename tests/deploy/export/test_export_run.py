"""An export: its folder, its metadata, what is refused, and prediction with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import calibrated, make
from PIL import Image
from torch import Tensor

import vitrail
from vitrail.deploy import Predictor
from vitrail.deploy.export import FORMATS, to_onnx
from vitrail.deploy.export.metadata import KEY, read_card
from vitrail.deploy.export.raw import RawImages
from vitrail.deploy.export.run import export
from vitrail.models import machine
from vitrail.weights import save_model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of two classes, of several sizes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 256, (40 + 5 * i, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    folder.mkdir()
    save_model(calibrated(make("vit", classes=3)), folder, data=str(photos))
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, photos: Path) -> Path:
    """An ONNX export in the default folder."""
    return export(run, "onnx", images=str(photos)).folder


def test_the_folder_has_model_card_and_contract(run: Path, exported: Path) -> None:
    assert exported == run.parent / "first-onnx"
    assert sorted(os.listdir(exported)) == [".vitrail-output", "card.json", "contract.json", "model.onnx"]
    card, model = read_card(exported), vitrail.load(run)
    assert (card.format, card.inputs, card.dynamic_size, card.precision) == ("onnx", "normalised", False, "fp32")
    assert (card.model, card.source, card.sha256) == ("ViT", "first", model.card.receipt.sha256)  # type: ignore[union-attr]
    assert card.card.calibration == model.card.calibration
    assert card.card.preprocessing == model.preprocessing
    assert card.classes == model.classes
    contract = json.loads((exported / "contract.json").read_text())
    assert contract["images"] > 0
    assert contract["max_difference"] <= 1e-4
    assert contract["agreement"] == 1.0
    assert contract["sha256"] == card.sha256
    assert [speed["batch"] for speed in contract["speed"]] == [1, 32]
    assert contract["size"]["after_bytes"] == (exported / "model.onnx").stat().st_size


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_the_file_has_the_card_and_the_hash(to: str, run: Path, photos: Path, tmp_path: Path) -> None:
    done = export(run, to, out=tmp_path / "out", images=str(photos), count=2)
    metadata = FORMATS[to].load().read_metadata(done.file)
    assert metadata["vitrail.sha256"] == done.card.sha256
    assert metadata[KEY] == (done.folder / "card.json").read_text(encoding="utf-8")


def test_an_onnx_file_names_no_place_of_this_machine(exported: Path) -> None:
    assert os.fsencode(Path(vitrail.__file__).parent) not in (exported / "model.onnx").read_bytes()


def test_prediction_with_an_export_is_that_of_the_run(run: Path, exported: Path, photos: Path) -> None:
    images = sorted(photos.rglob("*.png"))
    ours = Predictor(run, device="cpu", backend="fp32").predict(images, top=3, coverage=0.7)
    theirs = Predictor(exported).predict(images, top=3, coverage=0.7)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.path, one.label, one.outlier, one.classes) == (other.path, other.label, other.outlier, other.classes)
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-5)


def test_an_export_has_no_features_and_no_other_device_or_backend(exported: Path) -> None:
    predictor = Predictor(exported)
    with pytest.raises(ValueError, match="an export to onnx has no features; use the run that it was made of"):
        predictor.model.features(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match='runs on the CPU, and not on "cuda"'):
        Predictor(exported, device="cuda")
    with pytest.raises(ValueError, match='backend "packed" is a form of a torch model'):
        Predictor(exported, backend="packed")
    with pytest.raises(ValueError, match="is an export, which `vitrail predict` runs; give the run"):
        vitrail.load(exported)


def test_a_card_that_can_t_be_read_says_so(exported: Path, tmp_path: Path) -> None:
    entry = json.loads((exported / "card.json").read_text())
    del entry["task"]
    (tmp_path / "card.json").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match=r"card.json can't be read \(KeyError: 'task'\); export the model again"):
        Predictor(tmp_path)
    (tmp_path / "card.json").write_text((exported / "card.json").read_text())
    with pytest.raises(ValueError, match=r"has no model.onnx, though its card.json names onnx; export the model again"):
        Predictor(tmp_path)


def test_decoded_images(run: Path, photos: Path, tmp_path: Path) -> None:
    done = export(run, "torch", out=tmp_path / "raw", images=str(photos), raw_images=True)
    assert done.card.inputs == "raw"
    assert done.contract.deviation.max_difference < 1e-5  # the model may take another kernel of attention
    assert done.contract.deviation.pixel_difference is not None
    assert done.contract.deviation.pixel_difference < 1
    with pytest.raises(ValueError, match="takes decoded images and resizes them itself; give `predict` the run"):
        Predictor(done.folder)


def test_a_broken_contract_leaves_nothing(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = to_onnx.open_forward

    def shifted(path: Path) -> Any:
        forward = real(path)

        def wrong(images: Tensor) -> Tensor:
            return forward(images) + 0.01

        return wrong

    monkeypatch.setattr(to_onnx, "open_forward", shifted)
    with pytest.raises(ValueError, match=r"breaks its contract on .*: logits differ by 1.0e-02, and 1e-03 is allowed; nothing"):
        export(run, "onnx", out=tmp_path / "out", images=str(photos), count=2)
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_the_way_leaves_nothing(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "write", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(run, "onnx", out=tmp_path / "out", images=str(photos))
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(run: Path, exported: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="first-onnx exists and is not empty; give another folder with --out"):
        export(run, "onnx", images=str(photos))
    with pytest.raises(ValueError, match=r'format "onxx" is none of .*; did you mean "onnx"'):
        export(run, "onxx")
    with pytest.raises(ValueError, match="so it does not say its data; name images with --images FOLDER"):
        export(run, "onnx", out=tmp_path / "out")
    with pytest.raises(ValueError, match="--dynamic size is for normalised images"):
        export(run, "onnx", out=tmp_path / "out", dynamic_size=True, raw_images=True)
    with pytest.raises(ValueError, match="--runtime there is for a web page"):
        export(run, "onnx", out=tmp_path / "out", runtime="there")
    monkeypatch.setattr(machine, "missing", lambda packages: "onnx is not installed" if packages else None)
    with pytest.raises(ValueError, match=r"onnx is not installed, which this export needs; .* pip install 'vitrail\[export\]'"):
        export(run, "onnx", out=tmp_path / "out", images=str(photos))
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_head_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "pre").mkdir()
    save_model(make("vit", classes=0), tmp_path / "pre", data=str(photos))
    with pytest.raises(ValueError, match="has no classes; fine-tune it"):
        export(tmp_path / "pre", "torch", images=str(photos))


def test_random_weights_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Ti/16 has random weights; train it, or give the run"):
        export("Ti/16", "torch", images=str(photos), out=tmp_path / "out")


def test_several_labels(photos: Path, tmp_path: Path) -> None:
    model = make("vit", classes=3)
    model.multi_label = True
    (tmp_path / "many").mkdir()
    save_model(model, tmp_path / "many", data=str(photos))
    done = export(tmp_path / "many", "torch", images=str(photos))
    assert done.card.card.task == "multi-label"
    images = sorted(photos.rglob("*.png"))
    ours, theirs = Predictor(tmp_path / "many", backend="fp32", device="cpu"), Predictor(done.folder)
    assert [one.labels for one in ours.predict(images)] == [one.labels for one in theirs.predict(images)]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_example_gives_the_logits_of_the_run(to: str, run: Path, photos: Path, tmp_path: Path) -> None:
    done = export(run, to, out=tmp_path / "raw", images=str(photos), raw_images=True)
    images = sorted(photos.rglob("*.png"))
    script = Path(__file__).resolve().parents[3] / "examples" / f"export_{to}.py"
    environment = {**os.environ, "CI": "true"}  # where OpenVINO does not report to its statistics server
    said = subprocess.run(
        [sys.executable, script, done.folder, *images], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    given = [json.loads(line) for line in said.stdout.splitlines()]
    model = vitrail.load(run)
    assert model.preprocessing is not None
    raw = RawImages(model, model.preprocessing).eval()
    for image, entry in zip(images, given, strict=True):
        with torch.inference_mode():
            logits = raw(torch.from_numpy(np.array(Image.open(image)))[None])[0]
        assert entry["logits"] == pytest.approx(logits.tolist(), abs=1e-3)
        assert entry["label"] == model.classes[int(logits.argmax())]
