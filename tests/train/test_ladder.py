from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cases import ImageFolder
from vitrail.data.augment import normalise
from vitrail.data.dataset import Split
from vitrail.data.folder import open_folder
from vitrail.data.memory import FixedSplit
from vitrail.evaluate.features import extract
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.knn import knn
from vitrail.evaluate.probe import Probe, linear_probe
from vitrail.models import ViT
from vitrail.models.baseline import create_baseline
from vitrail.settings import DataConfig, Preprocessing
from vitrail.train.ladder import (
    BaselineScores,
    FinetuneAdvice,
    advise,
    apply_probe,
    evaluation_views,
    probe_checkpoint,
    run_baselines,
)
from vitrail.weights import save_model

IMAGES = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.5,), std=(0.25,))


def tiny(**fields: object) -> ViT:
    torch.manual_seed(0)
    shape: dict[str, object] = {"img_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 5}
    return ViT(**{**shape, "embed_dim": 16, "depth": 1, "num_heads": 2, **fields}).eval()


def shades(count: int, *, seed: int, noise: float = 30) -> FixedSplit:
    """Three classes of grey."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = 60 + 60.0 * labels.view(-1, 1, 1, 1) + noise * torch.randn(count, 1, 8, 8, generator=generator)
    return FixedSplit(pixels.clamp(0, 255).byte(), labels=labels, names=[f"{seed}/{i}" for i in range(count)])


SPLITS = {"train": shades(60, seed=0), "val": shades(30, seed=1), "test": shades(45, seed=2)}
whole = {"preprocessing": IMAGES, "num_classes": 3, "device": "cpu"}


def test_each_rung_is_what_it_is_alone() -> None:
    model = tiny()
    baselines = run_baselines(model, SPLITS, **whole)  # type: ignore[arg-type]
    seen = {name: extract(model, split, preprocessing=IMAGES, device="cpu") for name, split in SPLITS.items()}
    known = seen["train"].and_those_of(seen["val"])
    assert baselines.knn == knn(seen["train"], seen["val"])
    assert baselines.knn_test == knn(known, seen["test"])
    alone = linear_probe(seen["train"], seen["val"], seen["test"], num_classes=3)
    assert torch.equal(baselines.probe.weight, alone.weight)
    assert (baselines.probe.val, baselines.probe.test) == (alone.val, alone.test)
    assert baselines.scores == BaselineScores(90, 3, baselines.knn, alone.val, alone.train)
    assert baselines.advice == advise(baselines.scores)
    assert baselines.knn_test.value > 0.8
    assert "of 45 test images (95 % interval" in baselines.lines()[0]
    assert baselines.lines()[1].endswith(f", L2 {alone.l2:.2g}")
    assert baselines.lines()[2] == baselines.advice.why
    read = json.loads(json.dumps(baselines.to_dict(), allow_nan=False))
    assert read["probe"]["test"]["count"] == 45
    assert read["advice"]["finetune"] in (True, False)


def test_no_test_image_has_a_say_in_the_advice() -> None:
    with_test = run_baselines(tiny(), SPLITS, **whole)  # type: ignore[arg-type]
    other = run_baselines(tiny(), {**SPLITS, "test": shades(45, seed=9, noise=200)}, **whole)  # type: ignore[arg-type]
    assert other.scores == with_test.scores
    assert other.knn_test != with_test.knn_test


def test_without_other_images_the_training_images_are_held_out_in_turn() -> None:
    empty: dict[str, Split] = {"train": SPLITS["train"], "val": shades(0, seed=0)}
    baselines = run_baselines(tiny(), empty, **whole)  # type: ignore[arg-type]
    assert (baselines.knn.count, baselines.probe.val.count) == (60, 60)
    assert baselines.knn_test is None
    assert baselines.probe.test is None
    assert "of 60 held-out images" in baselines.lines()[1]
    assert baselines.to_dict()["probe"]["test"] is None
    one_each = run_baselines(tiny(), {"train": shades(3, seed=0)}, **whole)  # type: ignore[arg-type]
    assert one_each.lines()[1].startswith("linear probe: no images to score")
    assert one_each.advice.finetune


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match="no training images"):
        run_baselines(tiny(), {"train": shades(0, seed=0), "test": SPLITS["test"]}, **whole)  # type: ignore[arg-type]
    several = shades(4, seed=0)
    several.labels.fill_(-1)
    with pytest.raises(ValueError, match="any number of labels"):
        run_baselines(tiny(), {"train": several}, **whole)  # type: ignore[arg-type]


def test_views_are_the_splits_as_they_are_evaluated(image_folder: ImageFolder) -> None:
    source = open_folder(image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}}), val_fraction=0)
    found = evaluation_views(source, preprocessing=IMAGES, cfg=DataConfig(workers=0))
    assert {name: len(split) for name, split in found.items()} == {"train": 8, "test": 4}
    assert found["train"].sizes.tolist() == [[8, 8]] * 8


def test_a_checkpoint_is_probed_on_the_data_that_it_is_given(image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"train": {"cat": 6, "dog": 2}, "test": {"cat": 4, "dog": 4}})
    run, model = tmp_path / "run", tiny()
    run.mkdir()
    model.preprocessing = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.5,), std=(0.25,))
    save_model(model, run, data="photos")
    done = probe_checkpoint(run, str(photos), shots=(1, 5), draws=2, batch_size=3, device="cpu")
    assert (done.data, done.classes, done.images["test"]) == ("photos", ("cat", "dog"), 8)
    splits = evaluation_views(open_folder(photos, val_fraction=0.1), preprocessing=model.preprocessing, cfg=DataConfig())
    alone = run_baselines(done.model, splits, preprocessing=model.preprocessing, num_classes=2, device="cpu")
    assert done.ladder.to_dict() == alone.to_dict()
    assert [(each.shots, len(each.probe.values)) for each in done.few] == [(1, 2), (5, 2)]
    read = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert read["few_shot"][1]["short"] == ["dog"]
    assert probe_checkpoint(run, str(photos), device="cpu").few == ()


def test_what_a_checkpoint_cannot_be_probed_on(image_folder: ImageFolder) -> None:
    with pytest.raises(ValueError, match=r'^"B/16" is a shape with random weights; give a run or a checkpoint$'):
        probe_checkpoint("B/16", str(image_folder({"cat": 2, "dog": 2})))


# The probe as a head


@pytest.mark.parametrize("fields", [{}, {"pool": "cls+avg"}, {"dist_token": True}, {"pool": "avg", "class_token": False}])
def test_a_model_with_the_probe_says_what_the_probe_says(fields: dict[str, object]) -> None:
    model = tiny(**fields)
    probe = run_baselines(model, SPLITS, **whole).probe  # type: ignore[arg-type]
    apply_probe(model, probe)
    features = extract(model, SPLITS["test"], preprocessing=IMAGES, device="cpu", cache=False)
    with torch.no_grad():
        logits = model(normalise(SPLITS["test"].images, IMAGES))
    torch.testing.assert_close(logits, probe.logits(features.embeddings), atol=1e-3, rtol=1e-4)
    assert model.config.num_classes == 3
    assert probe.test == Accuracy(int((logits.argmax(1) == SPLITS["test"].labels).sum()), 45)
    assert all(parameter.requires_grad for parameter in model.parameters()), "it can be fine-tuned from here"


def test_a_baseline_takes_it_too() -> None:
    torch.manual_seed(0)
    rgb = Preprocessing(img_size=(32, 32), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = create_baseline("torchvision:squeezenet1_1", num_classes=7, img_size=32).eval()
    probe = probe_of(512)
    with pytest.raises(ValueError, match="no linear head"):
        apply_probe(model, probe)
    model = create_baseline("torchvision:mobilenet_v3_small", num_classes=7, img_size=32).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    split = FixedSplit(images, labels=torch.tensor([0, 1, 0, 1]), names=list("abcd"))
    features = extract(model, split, preprocessing=rgb, device="cpu")
    probe = probe_of(features.embeddings.shape[1])
    apply_probe(model, probe)
    with torch.no_grad():
        torch.testing.assert_close(model(normalise(images, rgb)), probe.logits(features.embeddings), atol=1e-4, rtol=1e-4)


def probe_of(width: int) -> Probe:
    nothing = Accuracy(0, 0)
    return Probe(torch.randn(2, width), torch.randn(2), 0.1, (), nothing, nothing, None)


def test_a_head_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ViT has no linear head of \(2, 99\)"):
        apply_probe(tiny(), probe_of(99))


# The advice

USUAL = BaselineScores(
    images=2000, classes=10, knn=Accuracy(80, 100), probe=Accuracy(85, 100), probe_train=Accuracy(1900, 2000)
)


@pytest.mark.parametrize(
    ("facts", "finetune", "why"),
    [
        (USUAL, True, "200 images a class, and the probe misses 5.0% even of the images that it was fitted to"),
        (replace(USUAL, probe_train=Accuracy(2000, 2000)), True, "200 images a class, and it starts where the probe ends"),
        (replace(USUAL, probe=Accuracy(998, 1000)), False, "2 of 1,000 held-out images wrong, so next to nothing is left"),
        (replace(USUAL, images=10, probe_train=Accuracy(10, 10)), True, "1 image a class, and it starts where the probe ends"),
        (replace(USUAL, images=300, probe_train=Accuracy(280, 300)), True, "30 images a class, and the probe misses 6.7%"),
        (
            replace(USUAL, images=300, probe_train=Accuracy(300, 300), knn=Accuracy(95, 100)),
            True,
            "30 images a class, and neighbours beat the probe",
        ),
        (replace(USUAL, knn=Accuracy(0, 0), probe=Accuracy(0, 0)), True, "200 images a class"),
    ],
)
def test_the_advice_and_its_reason(facts: BaselineScores, finetune: bool, why: str) -> None:
    advice = advise(facts)
    assert advice == FinetuneAdvice(finetune, advice.why)
    assert why in advice.why
    assert advice.why.startswith(f"fine-tuning can{'' if finetune else chr(39) + 't'} be expected to beat the probe: ")
    assert "\n" not in advice.why
