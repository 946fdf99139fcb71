"""Fine-tuning from facts: what the table gives for each order of magnitude, and what the machine and the data change."""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import vitrail
from cases import ImageFolder
from interrupts import interrupt_at
from vitrail.settings import Preprocessing, ViTConfig, layers
from vitrail.train import advice, plan
from vitrail.train import run as run_module
from vitrail.train.advice import LITTLE_SEEN, MIN_STEPS, TABLE, Facts, advise
from vitrail.weights import pretrained, save_model

TI = ViTConfig(embed_dim=192, depth=12, num_heads=3)
SOME = Facts(
    images=3000,
    class_counts=(300,) * 10,
    side=None,
    device="cpu",
    memory_bytes=24 * 10**9,
    minutes=None,
    model=TI,
    side_unit=(16, 16),
)


def test_the_row_for_so_many_images() -> None:
    for row, images in zip(TABLE, (900, 9_000, 90_000, 900_000), strict=True):
        layer = advise(dataclasses.replace(SOME, images=images, class_counts=(images // 10,) * 10)).layer
        assert layer["optim"]["lr"] == row.lr
        assert layer["optim"]["layer_decay"] == row.layer_decay
        assert layer["train"]["batch_size"] == row.batch_size
        assert layer["model"] == {"img_size": [224, 224], "drop_path_rate": row.drop_path_rate}


@settings(max_examples=25)
@given(
    images=st.integers(2, 10**6),
    classes=st.integers(2, 100),
    side=st.none() | st.integers(8, 300),
    memory=st.integers(10**9, 10**11),
    minutes=st.none() | st.floats(0.1, 1000),
)
def test_whatever_the_facts_the_settings_can_be_built(
    images: int, classes: int, side: int | None, memory: int, minutes: float | None
) -> None:
    counts = tuple(images // classes for _ in range(classes))
    given = advise(Facts(images, counts, side, "cpu", memory, minutes, TI, (16, 16)))
    built = layers.build([{"model": dataclasses.asdict(TI)}, given.layer])
    assert len(given.reasons) <= 10
    size = built.model.img_size
    assert isinstance(size, tuple)
    assert size[0] % 16 == 0
    assert built.train.batch_size % built.train.accumulate == 0
    if minutes is None:
        assert built.train.epochs is not None
        assert built.train.epochs * max(1, images // built.train.batch_size) >= MIN_STEPS
    else:
        assert built.train.minutes == minutes


@pytest.mark.parametrize("images", [500, 5_000, 50_000])
def test_what_is_said_of_the_augmentation_holds_above_the_recipe(images: int) -> None:
    given = advise(dataclasses.replace(SOME, images=images, class_counts=(images // 10,) * 10))
    augment = layers.build([layers.read_recipe("finetune"), given.layer]).augment
    words = next(reason.text for reason in given.reasons if "augmentation" in reason.text)
    assert (augment.rand_augment is not None) == ("RandAugment" in words)
    assert (augment.erase_prob > 0) == (images > 1_000)
    assert bool(augment.mixup_alpha) == ("mixup" in words)


def test_small_images_keep_nearly_all_of_themselves() -> None:
    small = dataclasses.replace(TI, img_size=(32, 32))
    given = advise(dataclasses.replace(SOME, images=500, class_counts=(50,) * 10, model=small))
    assert given.layer["augment"]["crop_scale"] == [0.7, 1.0]
    assert any("32 px are all subject" in reason.text for reason in given.reasons)
    assert advise(SOME).layer["augment"]["crop_scale"][0] < 0.5


def test_five_images_learn_at_the_rate_of_the_tables_batch() -> None:
    layer = advise(dataclasses.replace(SOME, images=5, class_counts=(1,) * 5)).layer
    assert layer["train"]["batch_size"] * layer["optim"]["lr"] == pytest.approx(TABLE[0].batch_size * TABLE[0].lr)
    assert layer["train"]["epochs"] == MIN_STEPS


def test_small_images_are_not_blown_up_and_small_memory_takes_parts() -> None:
    assert advise(dataclasses.replace(SOME, side=32)).layer["model"]["img_size"] == [96, 96]
    few = advise(dataclasses.replace(SOME, memory_bytes=2 * 10**9)).layer["train"]
    assert few["accumulate"] > 1
    assert few["batch_size"] == 64


def test_skewed_classes_are_balanced_and_what_was_said_is_not_explained() -> None:
    skewed = advise(dataclasses.replace(SOME, class_counts=(2000, 500, 500)))
    assert skewed.layer["data"] == {"balance": "sampler"}
    assert any("500 to 2,000 images" in line for line in skewed.reasons_without([]))
    assert not any("learning rate" in line for line in skewed.reasons_without(["optim.lr"]))


@pytest.mark.parametrize("recipe", ["from-scratch", "fashion-mnist", "cifar10"])
def test_weights_that_have_seen_little_are_trained_as_random_ones(recipe: str) -> None:
    little = dataclasses.replace(SOME, images_seen=LITTLE_SEEN - 1, recipe=recipe)
    given, scratch = advise(little), layers.build([layers.read_recipe(recipe)])
    built = layers.build([layers.read_recipe("finetune"), given.layer])
    assert built.optim == dataclasses.replace(scratch.optim, layer_decay=1.0)
    assert built.augment == scratch.augment
    assert built.train.ema_decay == scratch.train.ema_decay
    assert any(f"of {recipe}: the weights have seen 9,999,999 images" in reason.text for reason in given.reasons)
    multi = advise(dataclasses.replace(little, multi_label=True))
    assert multi.layer["optim"]["label_smoothing"] == 0


@pytest.mark.parametrize("facts", [{"images_seen": LITTLE_SEEN}, {"images_seen": None}, {"images_seen": 0, "images": 1000}])
def test_weights_that_have_seen_much_or_learn_from_few_images_stay_where_they_are(facts: dict[str, Any]) -> None:
    assert advise(dataclasses.replace(SOME, **facts)).layer["optim"]["name"] == "adamw"


# --------------------------------------------------------------------------------------------------------------------
# From weights to a run


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = vitrail.create_model("Ti/16", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=7, norm_eps=1e-5)
    half = (0.5, 0.5, 0.5)
    model.preprocessing = Preprocessing(img_size=(32, 32), in_channels=3, mean=half, std=half, crop_pct=0.9)
    (tmp_path / "weights").mkdir()
    save_model(model, tmp_path / "weights", data="elsewhere")
    return tmp_path / "weights"


SHORT: dict[str, Any] = {"steps": 2, "batch_size": 4, "eval_every": 0}


def test_starts_have_a_size_for_each_device_and_are_listed() -> None:
    listed = {row.id for row in pretrained.rows()}
    for name, sizes in advice.STARTS.items():
        assert sizes.keys() == {"cpu", "mps", "cuda"}
        assert set(sizes.values()) <= listed, name


def test_a_named_start_is_its_size_for_the_device(
    weights: Path, image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}})
    monkeypatch.setitem(advice.STARTS["siglip2"], "cpu", str(weights))
    options: dict[str, Any] = {"train": {**SHORT, "device": "cpu"}}
    run = vitrail.train(photos, out=tmp_path / "run", weights="siglip2", **options)
    assert layers.from_yaml((run.folder / "config.yaml").read_text()).model.weights == str(weights)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(weights, tmp_path / "elsewhere" / "dinov3")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = vitrail.train(photos, out=tmp_path / "own", weights="dinov3", **options)  # a folder of that name
    assert layers.from_yaml((run.folder / "config.yaml").read_text()).model.embed_dim == 24


def test_a_run_from_weights_has_their_shape_and_preprocessing(
    weights: Path, image_folder: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = image_folder({"train": {"cat": 6, "dog": 5}, "val": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}})
    run = vitrail.train(photos, weights=weights, out=tmp_path / "run", train=SHORT)
    out = capsys.readouterr().out
    assert "fitted to the data, the device and the time:" in out
    assert "the same as: vitrail train photos --recipe finetune" in out
    assert "linear probe: " in out
    model = vitrail.load(run.folder)
    assert isinstance(model, vitrail.ViT)
    assert (model.config.embed_dim, model.config.norm_eps, model.config.num_classes) == (24, 1e-5, 2)
    assert model.preprocessing is not None
    assert (model.preprocessing.mean, model.preprocessing.crop_pct) == ((0.5, 0.5, 0.5), 0.9)
    assert set(json.loads((run.folder / "ladder.json").read_text())) == {"knn", "probe", "advice"}
    written = layers.from_yaml((run.folder / "config.yaml").read_text())
    assert written.model.name == "custom"
    assert written.data.crop_pct == 0.9


def test_stop_early_ends_at_the_probe(
    weights: Path, image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.train.ladder.MIN_ERROR", 2.0)  # nothing is left to win, whatever the probe reaches
    photos = image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 3, "dog": 3}})
    run = vitrail.train(photos, weights=weights, out=tmp_path / "run", train={**SHORT, "stop_early": True})
    assert run.steps == 0
    ladder = json.loads((run.folder / "ladder.json").read_text())
    assert not ladder["advice"]["finetune"]
    assert isinstance(run.evaluation, vitrail.evaluate.Evaluation)
    assert run.evaluation.top1 == pytest.approx(ladder["probe"]["test"]["accuracy"])


@pytest.mark.slow
def test_fine_tuning_starts_at_the_probe(
    weights: Path, image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.train.ladder.MIN_ERROR", 2.0)  # so that `stop_early` gives the probe
    photos = image_folder({"train": {"cat": 8, "dog": 8}, "test": {"cat": 9, "dog": 9}})
    still = {"optim": {"lr": 1e-12, "weight_decay": 0.0}, "train": SHORT | {"ema_decay": 0.9}}
    run = vitrail.train(photos, weights=weights, out=tmp_path / "run", **still)
    probed = vitrail.train(photos, weights=weights, out=tmp_path / "probed", train=SHORT | {"stop_early": True})
    torch.testing.assert_close(head_of(run), head_of(probed), atol=1e-6, rtol=1e-5)
    moved = vitrail.train(photos, weights=weights, out=tmp_path / "moved", optim={"lr": 1.0}, train=SHORT)
    assert not torch.allclose(head_of(moved), head_of(probed), atol=1e-3), "the optimizer moves the head that the probe became"
    fresh = vitrail.train(photos, weights=weights, out=tmp_path / "fresh", **still | {"train": SHORT | {"probe_head": False}})
    assert not torch.allclose(head_of(fresh), head_of(probed), atol=1e-3)


def test_weights_that_know_the_classes_keep_their_head(
    weights: Path, image_folder: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = image_folder({"train": {"cat": 8, "dog": 8}, "test": {"cat": 2, "dog": 2}})
    first = vitrail.train(photos, weights=weights, out=tmp_path / "first", train=SHORT)
    capsys.readouterr()
    again = vitrail.train(photos, weights=first.folder, out=tmp_path / "again", optim={"lr": 1e-12}, train=SHORT)
    assert "the weights have a head for these classes" in capsys.readouterr().out
    torch.testing.assert_close(head_of(again), head_of(first), atol=1e-6, rtol=1e-5)


def test_a_run_says_how_many_images_it_has_seen_and_fine_tuning_knows_it(
    weights: Path,
    image_folder: ImageFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(advice, "TABLE", (TABLE[0]._replace(images=3), *TABLE[1:]))
    photos = image_folder({"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}})
    others = image_folder({"train": {"bird": 6, "fish": 6}, "test": {"bird": 2, "fish": 2}}, name="others")
    shape = {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}
    first = vitrail.train(photos, recipe="from-scratch", model={"name": "Ti/16", **shape}, out=tmp_path / "first", train=SHORT)
    assert vitrail.load(first.folder).card.images_seen == 8
    capsys.readouterr()
    second = vitrail.train(others, weights=first.folder, out=tmp_path / "second", train=SHORT)
    assert "of from-scratch: the weights have seen 8 images" in capsys.readouterr().out
    assert vitrail.load(second.folder).card.images_seen == 16, "those of the weights count"
    vitrail.train(others, weights=second.folder, out=tmp_path / "third", train=SHORT)
    assert "have seen" not in capsys.readouterr().out, "what knows these classes is kept"
    foreign = vitrail.train(others, weights=weights, out=tmp_path / "foreign", train=SHORT)
    assert vitrail.load(foreign.folder).card.images_seen is None, "nobody says how many these weights have seen"


def test_a_resumed_run_says_what_it_started_from(
    weights: Path, image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Licence, receipt and images seen are of the weights, which a resumed run does not read again."""
    config = json.loads((weights / "config.json").read_text())
    config["vitrail"] |= {"licence": "cc-by-nc-4.0", "images_seen": 100}
    (weights / "config.json").write_text(json.dumps(config))
    photos = image_folder({"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}})
    cfg = {"train": SHORT | {"steps": 4, "ema_decay": 0.9}}
    straight = vitrail.train(photos, weights=weights, out=tmp_path / "straight", **cfg)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        with pytest.raises(KeyboardInterrupt, match="step 2 is saved"):
            vitrail.train(photos, weights=weights, out=tmp_path / "broken", **cfg)
    resumed = vitrail.resume(tmp_path / "broken")
    assert (resumed.folder / "config.json").read_text() == (straight.folder / "config.json").read_text()
    written = json.loads((resumed.folder / "config.json").read_text())["vitrail"]
    assert (written["licence"], written["images_seen"]) == ("cc-by-nc-4.0", 116)
    assert written["receipt"]["file"] == "model.safetensors"


def head_of(run: vitrail.Run) -> torch.Tensor:
    model = vitrail.load(run.folder)
    assert isinstance(model, vitrail.ViT)
    assert isinstance(model.head, torch.nn.Linear)
    return model.head.weight.detach()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model": "S/16"}, r'model.name "S/16" has embed_dim 384, and the weights .* have 24; leave --model out'),
        ({"recipe": "from-scratch"}, r'recipe "from-scratch" sets another model than that of the weights .*; use'),
        ({"optim": {"freeze": 3}}, r"optim.freeze 3 is too m"),
        ({"train": {**SHORT, "accumulate": 3}}, r"train.accumulate 3 does not divide batch_size 4; use 2"),
    ],
)
def test_mistakes_are_one_line(
    said: dict[str, Any], message: str, weights: Path, image_folder: ImageFolder, tmp_path: Path
) -> None:
    photos = image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}})
    with pytest.raises(ValueError, match=message) as caught:
        vitrail.train(photos, weights=weights, out=tmp_path / "run", **({"train": SHORT} | said))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_photographs_without_weights_within_reach_start_from_scratch(
    image_folder: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}})
    run = vitrail.train(photos, out=tmp_path / "run", train=SHORT)
    assert "pretrained weights are not available" in capsys.readouterr().out
    assert layers.from_yaml((run.folder / "config.yaml").read_text()).model.weights is None


def test_photographs_start_from_weights_within_reach(
    weights: Path,
    image_folder: ImageFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}})
    monkeypatch.setitem(advice.STARTS[advice.DEFAULT_START], "cpu", str(weights))
    opened: list[object] = []
    open_weights = plan.open_weights
    monkeypatch.setattr(plan, "open_weights", lambda source: (opened.append(source), open_weights(source))[1])
    sources: list[str] = []
    open_source = plan.open_source
    monkeypatch.setattr(plan, "open_source", lambda path, **options: (sources.append(path), open_source(path, **options))[1])
    plans: list[weakref.ref[object]] = []
    held: list[bool] = []
    assemble, finish = run_module.assemble, run_module.finish

    def note_plan(context: Any, images: Any) -> Any:
        plans.append(weakref.ref(context.plan))
        return assemble(context, images)

    def note_held(*arguments: Any) -> Any:
        held.append(plans[0]() is not None)
        return finish(*arguments)

    monkeypatch.setattr(run_module, "assemble", note_plan)
    monkeypatch.setattr(run_module, "finish", note_held)
    run = vitrail.train(photos, out=tmp_path / "run", train={**SHORT, "device": "cpu", "epochs": None}, optim={"freeze": "all"})
    assert len(sources) == 1
    assert held == [False], "the tensors of the file are not held while the run lasts"
    out = capsys.readouterr().out
    assert f" from {weights}: " in out
    assert "--weights dinov3 or siglip2" in out
    assert opened == [str(weights)]  # and read once
    assert layers.from_yaml((run.folder / "config.yaml").read_text()).model.weights == str(weights)
    assert (run.folder / "ladder.json").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (weights, run.folder))
    assert torch.equal(before["blocks.0.attn.qkv.weight"], after["blocks.0.attn.qkv.weight"])  # not random ones
