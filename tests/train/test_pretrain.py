"""`vitrail.pretrain`: from images, labelled or not, to a run folder with a backbone."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import vitrail
from cases import ImageFolder
from interrupts import interrupt_at
from vitrail.evaluate import EmbeddingScores
from vitrail.settings import layers
from vitrail.train import checkpoint
from vitrail.train import run as run_module
from vitrail.train.loop import Loop
from vitrail.train.plan import go_on_gently
from vitrail.train.run import Run

TINY = {"name": "Ti/7", "embed_dim": 12, "num_heads": 2, "depth": 2, "pool": "avg", "class_token": False}
DECODER = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
LENGTH = {"steps": 3, "batch_size": 16, "device": "cpu", "precision": "fp32", "compare": False}


def pretrain(path: str | Path = "mnist", *, out: Path, **over: Any) -> Run:
    """Three steps of a tiny model; sections in `over` are merged."""
    sections: dict[str, Any] = {"method": "mae", "model": TINY, "mae": DECODER, "train": LENGTH, "data": {"workers": 0}}
    for name, section in over.items():
        sections[name] = sections.get(name, {}) | section if isinstance(section, dict) else section
    sections.setdefault("console", Console(file=io.StringIO(), force_terminal=False))
    return vitrail.pretrain(path, out=out, **sections)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """24 images of four sizes: loose, in folders, and in folders of folders."""
    rng, root = np.random.default_rng(0), tmp_path / "album"
    for i in range(24):
        folder = root / ("", "2019", "2020/may", "2020/june/beach")[i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + i % 4, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (root / "README.md").write_text("our album")
    return root


# --------------------------------------------------------------------------------------------------------------------
# The run folder


@pytest.mark.usefixtures("idx_set")
def test_a_run_folder_holds_a_backbone_without_head(tmp_path: Path) -> None:
    run = pretrain(out=tmp_path / "run", train={"eval_every": 0.4}, mae={"mask_ratio": 0.5})
    assert (run.steps, run.split, run.task) == (3, "test", "mae")
    assert isinstance(run.evaluation, EmbeddingScores)
    assert run.evaluation.headline.name == "knn_accuracy"
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "evaluation.json", "checkpoints"} <= names
    assert "confusion.png" not in names
    config = json.loads((run.folder / "config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (0, [])
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, class_token=False, global_pool="avg", fc_norm=False)
    own = {re.sub(r"blocks\.\d+", "blocks.0", name) for name in load_file(run.folder / "model.safetensors")}
    assert own == {re.sub(r"blocks\.\d+", "blocks.0", name) for name in theirs.state_dict()}

    found = [line for line in lines(run.folder) if "val_knn_accuracy" in line]
    assert found
    assert {"val_knn_accuracy", "val_effective_rank"} <= found[0].keys()
    pictures = sorted(path.name for path in (run.folder / "reconstructions").iterdir())
    assert pictures == [f"step_{step:06d}.png" for step in sorted({line["step"] for line in found} | {3})]
    with Image.open(run.folder / "reconstructions" / pictures[0]) as picture:
        assert picture.width == 4 + 3 * (3 * 28 + 4)  # original, visible, reconstructed; three times as large

    loaded = vitrail.load(run.folder)
    assert loaded(torch.zeros(2, 1, 28, 28)).shape == (2, 12)
    assert loaded.classes == ()
    opened = timm.create_model(f"local-dir:{run.folder}", pretrained=True).eval()
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(opened(images), loaded.eval()(images), atol=1e-5, rtol=1e-5)

    again = vitrail.pretrain(config=run.folder / "config.yaml", out=tmp_path / "again", console=Console(file=io.StringIO()))
    assert (again.folder / "model.safetensors").read_bytes() == (run.folder / "model.safetensors").read_bytes()


RANDOM: dict[str, Any] = {
    "model": {"drop_rate": 0.1, "proj_drop_rate": 0.2, "drop_path_rate": 0.3},
    "augment": {"crop": "pad", "erase_prob": 0.3},
    "optim": {"name": "muon"},
    "train": {"steps": 12, "ema_decay": 0.9, "eval_every": 1.0},
}


@pytest.mark.usefixtures("idx_set")
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbone, decoder, masks, dropout, running mean, scores and pictures."""
    straight = pretrain(out=tmp_path / "straight", **RANDOM)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 7)
        with pytest.raises(KeyboardInterrupt, match=r"^step 7 is saved; go on with `vitrail resume"):
            pretrain(out=tmp_path / "broken", **RANDOM)
    torch.manual_seed(12345)  # whatever the process drew since must not matter
    resumed = vitrail.resume(tmp_path / "broken", console=Console(file=io.StringIO()))
    assert (resumed.steps, resumed.task) == (12, "mae")
    for name in ("model.safetensors", "evaluation.json", "reconstructions/step_000012.png"):
        assert (resumed.folder / name).read_bytes() == (straight.folder / name).read_bytes(), name
    [mine], [whole] = (checkpoint.list_complete(run.folder / "checkpoints")[-1:] for run in (resumed, straight))
    for name in ("model", "companions", "optimizer"):
        assert (mine / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes(), name
    scores = [[line for line in lines(run.folder) if "val_knn_accuracy" in line] for run in (resumed, straight)]
    assert scores[0] == scores[1]


@pytest.mark.usefixtures("idx_set")
def test_the_same_call_begins_a_run_anew_behind_its_first_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    pretrain(out=tmp_path / "other")
    for name in ("call.json", "config.yaml"):
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    (folder / "reconstructions").mkdir()
    (folder / "reconstructions" / "step_000001.png").write_bytes(b"")
    assert pretrain(out=folder, resume="auto").steps == 3
    assert sorted(path.name for path in (folder / "reconstructions").iterdir()) == [f"step_{step:06d}.png" for step in (0, 3)]


@pytest.mark.usefixtures("idx_set")
def test_a_picture_and_a_score_change_nothing_of_what_is_learned(tmp_path: Path) -> None:
    often = pretrain(out=tmp_path / "often", train={"steps": 6, "eval_every": 0.3})
    never = pretrain(out=tmp_path / "never", train={"steps": 6, "eval_every": 0})
    assert (often.folder / "model.safetensors").read_bytes() == (never.folder / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("idx_set")
def test_a_batch_that_stands_in_needs_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[Loop] = []
    finish = run_module.finish
    monkeypatch.setattr(run_module, "finish", lambda loop, source: (loops.append(loop), finish(loop, source))[1])
    pretrain(out=tmp_path / "run")
    black = loops[0].placeholder_batch()
    nothing = dataclasses.replace(black, **{name: value[:0] for name, value in vars(black).items() if value is not None})
    batch = loops[0].prepare(0, nothing)  # none of its images could be read
    assert batch.stands_in
    assert loops[0].task(batch)["loss"].isfinite()


@pytest.mark.usefixtures("idx_set")
def test_weights_are_where_pretraining_starts(tmp_path: Path) -> None:
    start = vitrail.train(
        "mnist", out=tmp_path / "start", model=TINY, train=LENGTH, augment={"crop": "none"}, console=Console(file=io.StringIO())
    )
    heard = io.StringIO()
    run = vitrail.pretrain(
        "mnist",
        method="mae",
        weights=start.folder,
        out=tmp_path / "run",
        mae=DECODER,
        train=LENGTH | {"steps": 1},
        optim={"lr": 1e-9},
        console=Console(file=heard, width=200),
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (start.folder, run.folder))
    assert set(before) - set(after) == {"head.weight", "head.bias"}
    assert all(torch.allclose(after[name], before[name], atol=1e-4) for name in after)
    assert "k-NN and a linear probe" not in heard.getvalue()
    assert "only the heads learn in the first 10%" in heard.getvalue()
    assert "of that for random weights" not in heard.getvalue(), "a rate that is given stays as it is"
    gentle = vitrail.pretrain(
        "mnist",
        method="mae",
        weights=start.folder,
        out=tmp_path / "gentle",
        mae=DECODER,
        train=LENGTH,
        console=Console(file=heard, width=200),
    )
    given, recipe = layers.read_config(gentle.folder / "config.yaml"), layers.read_recipe("mae-small")
    assert given["optim"]["lr"] == pytest.approx(0.1 * recipe["optim"]["lr"])
    assert "learning rate 0.005, 0.1 of that for random weights" in heard.getvalue()
    assert (given["guard"]["knn_drop"], given["guard"]["images"]) == (0.02, 2048)
    assert "a k-NN accuracy more than 2 points below that of the weights ends the run (guard.knn_drop)" in heard.getvalue()


@pytest.mark.usefixtures("idx_set")
def test_nothing_of_the_weights_changes_while_only_the_heads_learn(tmp_path: Path) -> None:
    """Neither weights nor the statistics of a stem's BatchNorms, which had cost 3 points of k-NN accuracy by themselves."""
    shape = {"name": "Ti/4", "embed_dim": 16, "depth": 1, "num_heads": 2, "pool": "avg", "class_token": False, "stem": "conv"}
    once = {"batch_size": 32, "precision": "fp32", "device": "cpu", "compare": False}
    start = vitrail.pretrain(
        "mnist", method="lejepa", out=tmp_path / "start", model=shape, train=once | {"steps": 8}, console=Console(quiet=True)
    )
    options: dict[str, Any] = {"method": "lejepa", "weights": start.folder, "guard": {"stop": False}}
    for steps, same in ((3, True), (4, False)):
        run = vitrail.pretrain(
            "mnist",
            out=tmp_path / f"for-{steps}",
            train=once | {"steps": steps, "ema_decay": 0.0},
            optim={"lr": 0.1, "warm_heads": 0.75},
            console=Console(quiet=True),
            **options,
        )
        before, after = (load_file(folder / "model.safetensors") for folder in (start.folder, run.folder))
        assert any("running_mean" in name for name in before)
        assert all(torch.equal(after[name], before[name]) for name in before) is same


@pytest.mark.parametrize(
    ("guard", "has_classes", "drop", "said"),
    [
        ({}, True, 0.02, "more than 2 points"),
        ({"knn_drop": 0.05}, True, 0.02, "more than 5 points"),  # the request is a layer above
        ({"knn_drop": 0.0}, True, 0.02, None),
        ({"stop": False}, True, 0.02, None),
        ({}, False, None, None),
    ],
)
def test_the_guard_looks_closer_where_classes_tell_what_weights_know(
    guard: dict[str, Any], has_classes: bool, drop: float | None, said: str | None
) -> None:
    notes: list[str] = []
    layer = go_on_gently(1.0, {"guard": guard}, notes, has_classes=has_classes)
    assert layer["guard"].get("knn_drop") == drop
    about = [note for note in notes if "k-NN" in note]
    assert len(about) == (said is not None)
    assert all(str(said) in note for note in about)


def test_going_on_from_weights_ends_where_it_loses_what_they_know(tmp_path: Path) -> None:
    """Weights that know the classes, and a rate that spoils them: the run ends, and its model is the start."""
    shape = {"name": "Ti/7", "embed_dim": 32, "depth": 2, "num_heads": 2, "pool": "avg", "class_token": False}
    start = vitrail.train(
        "fashion-sample",
        out=tmp_path / "start",
        model=shape,
        train={"steps": 300, "batch_size": 64, "precision": "fp32", "device": "cpu"},
        console=Console(file=io.StringIO()),
    )
    heard = io.StringIO()
    run = vitrail.pretrain(
        "fashion-sample",
        method="mae",
        weights=start.folder,
        out=tmp_path / "run",
        mae=DECODER,
        optim={"lr": 0.5},
        guard={"images": 400},
        train={"steps": 100, "batch_size": 32, "precision": "fp32", "device": "cpu", "compare": False, "eval_every": 1},
        console=Console(file=heard, width=300),
    )
    assert run.stopped is not None
    assert run.stopped.cause == "accuracy fell"
    assert 10 < run.stopped.step < 100
    assert "the embedding got worse, for its k-NN accuracy is" in heard.getvalue()
    before, after = (load_file(folder / "model.safetensors") for folder in (start.folder, run.folder))
    assert all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize(
    ("call", "method"),
    [
        ({}, "lejepa"),
        ({"recipe": "simmim-small"}, "simmim"),
        ({"recipe": "finetune"}, "lejepa"),  # of labels
        ({"config": "train: {task: dino}"}, "dino"),
        ({"config": "extends: beit-small\ntrain: {minutes: 1}"}, "beit"),
        ({"config": "train: {task: dino}", "recipe": "mae-small"}, "dino"),
        ({"recipe": "simmim-small", "method": "mae"}, "mae"),
    ],
)
def test_the_method_is_that_of_the_call_or_of_its_files_or_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any], method: str
) -> None:
    class Asked(Exception):
        pass

    def ask(path: str, **sections: Any) -> Run:
        raise Asked(sections["train"]["task"])

    monkeypatch.setattr(run_module, "run_training", ask)
    if "config" in call:
        (tmp_path / "config.yaml").write_text(call["config"])
        call = call | {"config": tmp_path / "config.yaml"}
    with pytest.raises(Asked, match=f"^{method}$"):
        vitrail.pretrain("mnist", **call)


def test_a_misspelt_method_of_a_config_is_not_replaced_by_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {task: lejpa}")
    with pytest.raises(ValueError, match=r'method "lejpa" is none of .*; did you mean "lejepa"\?'):
        vitrail.pretrain("mnist", config=tmp_path / "config.yaml")


# --------------------------------------------------------------------------------------------------------------------
# Images without classes


def test_a_tree_of_folders_is_learned_from_and_split_by_a_hash(tree: Path, tmp_path: Path) -> None:
    heard = io.StringIO()
    small = {"img_size": 28, "in_channels": 3}
    run = pretrain(tree, out=tmp_path / "run", model=small, data={"val_fraction": 0.3}, console=Console(file=heard, width=300))
    said = heard.getvalue()
    assert "note: not used: 1 file of notes or tables (README.md)" in said
    assert "training images, no labels" in said
    assert re.search(r"val effective rank [\d.]+ \(95 % interval [\d.]+ to [\d.]+\) on \d+ images", said)
    scores = json.loads((run.folder / "evaluation.json").read_text())
    assert (scores["split"], scores["knn"], scores["headline"]["name"]) == ("val", None, "effective_rank")
    assert vitrail.load(run.folder).classes == ()
    train, val = scores["count"], int(re.search(r"album: (\d+) training", said)[1])  # type: ignore[index]
    assert train + val == 24


def test_unreadable_files_are_left_out_up_to_a_share(tree: Path, tmp_path: Path) -> None:
    (tree / "2019" / "broken.jpg").write_bytes(b"no image")
    small = {"img_size": 28, "in_channels": 3}
    with pytest.raises(
        ValueError, match=r"1 of \d+ files for train in .*album can't be read, more than data.max_bad 0.01 \(2019"
    ):
        pretrain(tree, out=tmp_path / "run", model=small)
    assert not (tmp_path / "run").exists()
    run = pretrain(tree, out=tmp_path / "run", model=small, data={"max_bad": 0.1})
    assert (run.folder / "skipped.txt").read_text().startswith("2019/broken.jpg\t")


def test_classes_are_for_the_score_alone(image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({side: {"cat": 9, "dog": 9} for side in ("train", "val", "test")})
    run = pretrain(photos, out=tmp_path / "run", model={"img_size": 28, "in_channels": 3})
    scores = json.loads((run.folder / "evaluation.json").read_text())
    assert (scores["split"], scores["knn"]["count"]) == ("test", 18)


def test_training_says_what_to_do_without_classes(tree: Path, tmp_path: Path) -> None:
    for folder, why in ((tree / "2019", "no images in class folders"), (tree / "2020" / "june", "has one class only")):
        with pytest.raises(ValueError, match=rf"{why}.*learn without classes: `vitrail pretrain {folder}`$"):
            vitrail.train(folder, out=tmp_path / "run")
