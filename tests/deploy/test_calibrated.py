"""A card's calibration: saved and loaded, used by predictions, and dropped with the head it was fitted for."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

import vitrail
from cases import ImageFolder
from vitrail.deploy import Predictor
from vitrail.evaluate.conformal import prediction_sets
from vitrail.evaluate.trust import calibrate, measure_trust
from vitrail.models import ViT
from vitrail.models.card import Calibration
from vitrail.settings import Preprocessing
from vitrail.weights import save_model

CALIBRATION = Calibration(images=8, temperature=2.0, conformal_scores=(0.1, 0.3, 0.5, 0.7), outlier_energy=-1.0)


def make_run(folder: Path, calibration: Calibration | None) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    model = ViT(img_size=16, patch_size=8, in_channels=3, num_classes=3, embed_dim=16, depth=1, num_heads=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    images = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.card = dataclasses.replace(model.card, preprocessing=images, classes=("a", "b", "c"), calibration=calibration)
    save_model(model, folder, data="toys")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "calibrated", CALIBRATION)


@pytest.fixture(scope="module")
def views() -> Tensor:
    return torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_saved_and_loaded(run: Path, tmp_path: Path) -> None:
    assert vitrail.load(run).card.calibration == CALIBRATION
    assert vitrail.load(run, num_classes=5).card.calibration is None
    assert vitrail.load(make_run(tmp_path / "plain", None)).card.calibration is None


def test_a_card_that_can_t_be_read_says_so(run: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "broken", CALIBRATION)
    config = json.loads((folder / "config.json").read_text())
    config["vitrail"]["calibration"]["temprature"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^config.json's calibration can't be read .*; restore it from a copy$"):
        vitrail.load(folder)


def test_probabilities_have_the_temperature(run: Path, views: Tensor) -> None:
    calibrated, plain = (Predictor(run, device="cpu", backend="fp32", calibrated=each) for each in (True, False))
    logits = plain.logits(views)
    torch.testing.assert_close(calibrated.probabilities(views), (logits / 2).softmax(1))
    torch.testing.assert_close(plain.probabilities(views), logits.softmax(1))


def test_sets_and_marks(run: Path, views: Tensor) -> None:
    predictor = Predictor(run, device="cpu", backend="fp32")
    logits, arrays = predictor.logits(views), [view.permute(1, 2, 0).numpy() for view in views]
    sets = prediction_sets(logits, CALIBRATION.conformal_scores, coverage=0.6, temperature=2.0)
    for one, inside, prediction in zip(logits, sets, predictor.predict(arrays, coverage=0.6), strict=True):
        assert prediction.classes is not None
        assert set(prediction.classes) == {name for name, there in zip("abc", inside.tolist(), strict=True) if there}
        assert prediction.outlier == bool(-one.double().logsumexp(0) > -1.0)
        assert prediction.to_dict()["classes"] == list(prediction.classes)
    assert predictor.predict(arrays[:1])[0].classes is None


def test_a_coverage_without_scores_is_refused(tmp_path: Path, run: Path) -> None:
    predictor = Predictor(make_run(tmp_path / "plain", None), device="cpu")
    with pytest.raises(ValueError, match="needs a model with conformal scores in its card"):
        predictor.predict([], coverage=0.9)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Predictor(run, device="cpu").predict([], coverage=1.0)


def test_what_is_fitted_is_what_is_measured() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> tuple[Tensor, Tensor]:
        logits = 2 * torch.randn(6000, 5, generator=generator)
        labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
        return 3 * logits, labels

    found, other = calibrate(*drawn()), drawn()
    assert (found.images, len(found.conformal_scores)) == (6000, 1000)
    assert found.temperature == pytest.approx(3, rel=0.1)
    trust = measure_trust(*other, found)
    assert trust.error < 0.02 < trust.error_before
    assert [each.covered.value for each in trust.coverages] == pytest.approx([0.9, 0.95], abs=0.015)
    assert trust.outliers is not None
    assert trust.outliers.value == pytest.approx(0.05, abs=0.015)
    assert json.dumps(trust.to_dict(), allow_nan=False)


def test_images_of_several_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="one class for each image"):
        calibrate(torch.zeros(2, 3), torch.tensor([-1, -1]))


def test_training_on_drops_the_calibration_of_the_starting_weights(image_folder: ImageFolder, tmp_path: Path) -> None:
    """It is of other weights: without validation images the new run has none."""
    photos = image_folder({"train": {"a": 12, "b": 12}})
    model = {"name": "Ti/8", "img_size": 16, "depth": 1, "embed_dim": 16, "num_heads": 2}
    short = {"steps": 1, "batch_size": 4, "device": "cpu", "ladder": False}
    run = vitrail.train(photos, out=tmp_path / "one", model=model, train=short, data={"val_fraction": 0.3, "workers": 0})
    first = vitrail.load(run.folder).card.calibration
    assert first is not None
    assert first.images > 0
    data = {"val_fraction": 0.0, "workers": 0}
    again = vitrail.train(photos, weights=run.folder, out=tmp_path / "two", train=short, data=data)
    assert vitrail.load(again.folder).card.calibration is None


def test_what_can_t_be_calibrated_costs_a_line_and_not_the_model(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Calibration:
        raise ValueError("the logits are not finite")

    monkeypatch.setattr("vitrail.tasks.classify.calibrate", refuse)
    photos = image_folder({"train": {"a": 12, "b": 12}})
    said = io.StringIO()
    run = vitrail.train(
        photos,
        out=tmp_path / "run",
        model={"name": "Ti/8", "img_size": 16, "depth": 1, "embed_dim": 16, "num_heads": 2},
        train={"steps": 1, "batch_size": 4, "device": "cpu"},
        data={"val_fraction": 0.3, "workers": 0},
        console=Console(file=said, width=200),
    )
    assert "note: the model is not calibrated: the logits are not finite" in said.getvalue()
    assert vitrail.load(run.folder).card.calibration is None
