"""A setting that does not do what it says beside the others is said, once; the others are not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import vitrail
from cases import ImageFolder
from vitrail.models import meta_model
from vitrail.settings import Preprocessing, layers
from vitrail.settings.smaller import apply_smaller, read_smaller
from vitrail.train.notes import check_warmup, find_unused
from vitrail.train.plan import plan_run
from vitrail.train.run import make_request
from vitrail.weights import save_model

NO_EFFECT = "; it has no effect here"
FROM: dict[str, Any] = {"model": {"weights": "some.safetensors"}}


def notes(*stack: layers.Layer, multi_label: bool = False) -> list[str]:
    """What is said of layers over the defaults, the last of which somebody typed."""
    whole = layers.build(stack)
    return find_unused(whole, meta_model(whole.model), overrides=layers.merge(stack[-1]), multi_label=multi_label)


def test_the_defaults_and_the_recipes_have_nothing_to_say() -> None:
    assert notes({}) == []
    for name in layers.recipes():
        whole = layers.build([layers.read_recipe(name), FROM])
        for settings in (whole, *(apply_smaller(whole, smaller, {}) for smaller in read_smaller(name))):
            assert find_unused(settings, meta_model(settings.model), multi_label=False) == [], name


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"train": {"smaller": False, "epochs": 2}}, "train.smaller is for a run of minutes"),
        ({"train": {"min_epochs": 5.0}}, "train.min_epochs is for a run of minutes"),
        ({"augment": {"mixup_prob": 0.5}}, "augment.mixup_prob needs mixup_alpha or cutmix_alpha above 0"),
        ({"augment": {"mixup_alpha": 0.2, "mixup_prob": 0}}, "augment.mixup_alpha and cutmix_alpha need mixup_prob above 0"),
        (
            {"augment": {"mixup_alpha": 0.2, "switch_prob": 0.1}},
            "augment.switch_prob needs both mixup_alpha and cutmix_alpha ab",
        ),
        ({"augment": {"crop": "pad", "crop_scale": [0.5, 1]}}, "augment.crop_scale is for augment.crop resized"),
        ({"augment": {"crop": "none", "crop_ratio": [1, 1]}}, "augment.crop_ratio is for augment.crop resized"),
        ({"augment": {"crop_pad": 2}}, "augment.crop_pad is for augment.crop pad"),
        ({"optim": {"label_smoothing": 0.1, "loss": "bce"}}, "optim.label_smoothing is for optim.loss ce"),
        ({"optim": {"name": "sgd", "betas": [0.9, 0.9]}}, "optim.betas[1] is not used by SGD, whose momentum is betas[0]"),
        ({"train": {"size_stages": 2}}, "train.size_stages and full_size_from need train.start_size"),
        ({"train": {"full_size_from": 0.5}}, "train.size_stages and full_size_from need train.start_size"),
        ({"train": {"start_size": 224}}, "train.start_size 224 is the full size already"),
        (
            {"model": {"img_size": [160, 224]}, "train": {"start_size": 160, "size_stages": 3}},
            "train.start_size 160 is the full size already",
        ),
        ({"train": {"patch_sizes": [16]}}, "train.patch_sizes 16 is the model's own patch and no other"),
        ({"train": {"patch_sizes": [16, 16]}}, "train.patch_sizes 16, 16 is the model's own patch and no other"),
        ({"train": {"ladder": True}}, "train.ladder needs model.weights"),
        ({"train": {"ladder": True}, "model": {"weights": "none"}}, "train.ladder needs model.weights"),
        ({"train": {"probe_head": True}}, "train.probe_head needs model.weights and train.ladder"),
        ({"train": {"stop_early": True}}, "train.stop_early needs model.weights and train.ladder"),
        (
            {"train": {"stop_early": True}, "model": {"weights": "none"}},
            "train.stop_early needs model.weights and train.ladder",
        ),
        ({"distill": {"alpha": 0.3}}, "distill's settings need distill.teacher"),
        ({"distill": {"teacher": "RUN", "tau": 2}}, "distill.tau is for distill.kind soft"),
        ({"distill": {"teacher": "RUN", "alpha": 0}}, "distill.teacher needs distill.alpha above 0"),
        (
            {"model": {"dist_token": True}},
            "model.dist_token learns from distill.teacher; without one it is a second class token",
        ),
        (
            {"model": {"dist_token": True, "weights": "none"}},
            "model.dist_token learns from distill.teacher; without one it is a second class token",
        ),
    ],
)
def test_a_setting_without_effect_is_said_once(layer: dict[str, Any], said: str) -> None:
    [note] = notes(layer)
    assert note.startswith(said)
    assert note.endswith(NO_EFFECT)
    assert "\n" not in note


@pytest.mark.parametrize(
    "layer",
    [
        {"augment": {"mixup_alpha": 0.2, "mixup_prob": 0.5}},
        {"augment": {"mixup_alpha": 0.2, "cutmix_alpha": 1, "switch_prob": 0.2}},
        {"augment": {"crop": "pad", "crop_pad": 2}},
        {"optim": {"label_smoothing": 0.1}},
        {"optim": {"loss": "bce"}},
        {"optim": {"loss": "ce"}},
        {"train": {"start_size": 160, "size_stages": 2, "full_size_from": 0.5}},
        {"train": {"minutes": 3, "smaller": False, "min_epochs": 2}},
        {"train": {"patch_sizes": [8, 16]}},
        {"train": {"patch_sizes": [32]}},
        {"train": {"ladder": False}},
        {**FROM, "train": {"ladder": True, "stop_early": True, "probe_head": True}},
        {**FROM, "optim": {"freeze": 3, "layer_decay": 0.7}},
        {**FROM, "model": {"weights": "some.pt", "dist_token": True}},
        {"distill": {"teacher": "RUN", "kind": "soft", "tau": 2}},
    ],
)
def test_a_setting_with_effect_is_not(layer: dict[str, Any]) -> None:
    assert notes(layer) == []


def test_only_what_was_typed_counts_where_the_default_is_the_same() -> None:
    """A run's config.yaml holds every default, and says nothing by them."""
    whole = layers.build([])
    model = meta_model(whole.model)
    assert find_unused(whole, model, overrides={"train": {"ladder": True}}) == [f"train.ladder needs model.weights{NO_EFFECT}"]
    written = layers.from_yaml(layers.to_yaml(whole))
    assert find_unused(written, model) == []
    assert find_unused(written, model, multi_label=True) == []


@pytest.mark.parametrize("freeze", [2, "all"])
def test_frozen_blocks_have_no_rate_to_decay(freeze: int | str) -> None:
    layer = {"model": {"weights": "some.pt", "depth": 2}, "optim": {"freeze": freeze, "layer_decay": 0.7}}
    assert notes(layer) == [f"optim.layer_decay is for trainable blocks, and optim.freeze freezes them all{NO_EFFECT}"]
    deeper = layers.merge(layer, {"model": {"depth": 3}})
    assert len(notes(deeper)) == (1 if freeze == "all" else 0)


def test_fp8_is_emulated_on_a_cpu() -> None:
    said = "train.precision fp8 is emulated on a CPU, where bf16 and fp32 are faster"
    assert notes({"train": {"precision": "fp8", "device": "cpu"}}) == [said]
    assert notes({"train": {"precision": "bf16", "device": "cpu"}}) == []


def test_random_weights_that_are_frozen() -> None:
    said = "optim.freeze all: the frozen blocks keep their random weights; --weights W starts from others"
    assert notes(layers.read_recipe("linear-probe")) == [said]
    assert notes(layers.read_recipe("linear-probe"), {"model": {"weights": "none"}}) == [said]


# --------------------------------------------------------------------------------------------------------------------
# Images with any number of labels


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([{}], []),
        ([{"optim": {"loss": "bce"}}], []),
        ([{"augment": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mixup_prob": 0.5, "repeats": 2}}], []),
        ([{"optim": {"loss": "ce"}}], ["optim.loss ce chooses one class an image, and bce is for any number of labels"]),
        ([{"optim": {"loss": "ce"}}, {}], []),
        (
            [{"optim": {"label_smoothing": 0.1, "loss": "bce"}}],
            ["optim.label_smoothing is for images of one class each, and these have any number of labels"],
        ),
        ([FROM], ["train.ladder needs images of one class each"]),
        ([FROM, {"train": {"ladder": False}}], []),
        (
            [FROM, {"train": {"stop_early": True}}],
            ["train.ladder needs images of one class each", "train.stop_early needs images of one class each"],
        ),
        ([{"train": {"stop_early": True}}], ["train.stop_early needs model.weights and train.ladder"]),
    ],
)
def test_what_images_of_several_labels_do_not_have(layers: list[dict[str, Any]], said: list[str]) -> None:
    assert notes(*layers, multi_label=True) == [f"{text}{NO_EFFECT}" for text in said]


def test_a_run_says_it_once(image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"photos": 12})
    lines = [f"photos/{i}.jpg,{('sea', 'sea;sky', 'sky')[i % 3]},{('train', 'test')[i % 2]}\n" for i in range(12)]
    (photos / "labels.csv").write_text("path,labels,split\n" + "".join(lines))
    model = vitrail.create_model("Ti/16", img_size=32, depth=1, embed_dim=12, num_heads=2, num_classes=3)
    half = (0.5, 0.5, 0.5)
    model.preprocessing = Preprocessing(img_size=(32, 32), in_channels=3, mean=half, std=half)
    (tmp_path / "weights").mkdir()
    save_model(model, tmp_path / "weights", data="elsewhere")
    said = io.StringIO()
    vitrail.train(
        photos,
        weights=tmp_path / "weights",
        out=tmp_path / "run",
        optim={"loss": "ce"},
        train={"steps": 1, "batch_size": 4, "device": "cpu", "precision": "fp32"},
        console=Console(file=said, width=200),
    )
    told = [line for line in said.getvalue().splitlines() if line.startswith("note: ")]
    assert len(set(told)) == len(told)
    assert f"note: train.ladder needs images of one class each{NO_EFFECT}" in told
    assert f"note: optim.loss ce chooses one class an image, and bce is for any number of labels{NO_EFFECT}" in told


@pytest.mark.parametrize(
    ("warmup", "steps", "says"),
    [(0.5, 2, False), (5, None, False), (4, 5, False), (5, 5, True), (500.0, 20, True)],
)
def test_a_warmup_longer_than_the_run(warmup: float, steps: int | None, says: bool) -> None:
    line = check_warmup(warmup, steps)
    if says:
        assert (
            line == f"optim.warmup {warmup:g} steps is longer than the run of {steps}: the learning rate never reaches optim.lr"
        )
    else:
        assert line is None


@pytest.mark.parametrize("length", [{"steps": 3}, {"minutes": 0.02}])
def test_a_run_names_its_model_and_tells_a_long_warmup(
    image_folder: ImageFolder, tmp_path: Path, length: dict[str, Any]
) -> None:
    photos, said = image_folder({"Training": {"a": 8, "b": 8}, "holdout": {"a": 2, "b": 2}, "spare": {"c": 1}}), io.StringIO()
    vitrail.train(
        photos,
        out=tmp_path / "run",
        model={"name": "Ti/16", "weights": "none", "img_size": 32, "depth": 1, "embed_dim": 12, "num_heads": 2},
        optim={"warmup": 100_000},
        train={"batch_size": 4, "device": "cpu", "precision": "fp32", **length},
        console=Console(file=said, width=200),
    )
    text = said.getvalue()
    assert "note: Training/ is train, holdout/ is val; not used: spare/" in text
    assert "photos: 16 training images, 2 classes · Ti/16: " in text
    assert text.count("note: optim.warmup 100000 steps is longer than the run of ") == 1
    said.truncate(0)
    vitrail.train(
        photos,
        weights=tmp_path / "run",
        out=tmp_path / "tuned",
        train={"batch_size": 4, "device": "cpu", "precision": "fp32", "steps": 2, "ladder": False},
        console=Console(file=said, width=200),
    )
    assert f"2 classes · custom from {tmp_path / 'run'}: " in said.getvalue()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "S/16"}, "--model.stem conv --model.pool avg --model.class_token false --model.pos_embed sincos2d"),
        ({"name": "S/16", "pool": "map", "stem": "patch"}, "--model.class_token false --model.pos_embed sincos2d"),
        ({"name": "swin_t"}, None),  # it has none of these fields
        ({"depth": 4}, None),  # the recipe's model, with one field changed
        ({}, None),
    ],
)
def test_a_model_by_name_says_which_fields_of_the_recipe_it_leaves(model: dict[str, Any], said: str | None) -> None:
    request = make_request("fashion-sample", {"model": model, "train": {"task": "lejepa"}}, recipe="lejepa-photos")
    about = [note for note in plan_run(request).notes if "has the defaults of its name" in note]
    line = "note: model S/16 has the defaults of its name, and not what the recipe sets for its own: "
    assert about == ([] if said is None else [line + said])
