"""Runs with a guard: a planted collapse ends early with the best model, a healthy run goes to its end, resuming repeats it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import vitrail
from interrupts import interrupt_at
from vitrail.data.sources import open_source
from vitrail.evaluate import evaluate_run
from vitrail.settings import DataConfig, Preprocessing
from vitrail.tasks.dino import Dino
from vitrail.train import checkpoint
from vitrail.train.run import Run

STEPS = 40
MODEL = {"name": "Ti/7", "embed_dim": 32, "depth": 2, "num_heads": 2, "pool": "avg", "class_token": False}
LEJEPA = {"projector_dims": [32], "projector_out": 8, "directions": 32}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
LENGTH = {"steps": STEPS, "batch_size": 32, "device": "cpu", "precision": "fp32", "eval_every": 0, "compare": False}
PLANTED = {"method": "lejepa", "lejepa": LEJEPA | {"sigreg_weight": 0.0}, "optim": {"name": "adamw", "lr": 2.5}}
HEALTHY: dict[str, dict[str, Any]] = {
    "lejepa": {"method": "lejepa", "lejepa": LEJEPA | {"sigreg_weight": 0.05}, "optim": {"name": "adamw", "lr": 0.2}},
    "mae": {"method": "mae", "mae": DECODER, "optim": {"name": "adamw", "lr": 0.2}},
}


@pytest.fixture
def clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A "mnist" of 600 pictures of clothes: noise has no classes that a collapse could lose."""
    source = open_source("fashion-sample")
    view = Preprocessing(img_size=(28, 28), in_channels=1, mean=source.mean, std=source.std)
    raw, _ = source.load("train", preprocessing=view, cfg=DataConfig(workers=0), augment=None).read(torch.arange(640))
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for prefix, part in (("train", slice(0, 600)), ("t10k", slice(600, 640))):
        images, labels = raw.images[part, 0].numpy(), raw.labels[part].numpy().astype(np.uint8)
        header = b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + np.array([len(labels)], ">u4").tobytes() + labels.tobytes()
        )
    monkeypatch.setenv("VITRAIL_DATA", str(folder.parent))


def pretrain(out: Path, case: dict[str, Any], **over: Any) -> Run:
    """Forty steps at most; sections in `over` are merged."""
    sections: dict[str, Any] = {
        "model": MODEL,
        "views": {"local_crops": 0},
        "data": {"workers": 0, "val_fraction": 0.4},
        "train": LENGTH,
        **case,
    }
    for name, section in over.items():
        sections[name] = sections.get(name, {}) | section if isinstance(section, dict) else section
    sections.setdefault("console", Console(file=io.StringIO(), width=300))
    return vitrail.pretrain("mnist", out=out, **sections)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if name in record]


@pytest.mark.usefixtures("clothes")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_collapse_is_caught_within_a_fifth_of_the_run(tmp_path: Path, seed: int) -> None:
    heard = io.StringIO()
    run = pretrain(tmp_path / "run", PLANTED, train={"seed": seed}, console=Console(file=heard, width=400))
    assert run.stopped is not None
    assert run.stopped.cause == "rank fell"
    assert run.steps == run.stopped.step <= STEPS / 5
    assert "raise lejepa.sigreg_weight, which is 0" in heard.getvalue()
    found = json.loads((run.folder / "evaluation.json").read_text())["stopped"]
    scores = {line["step"]: line["check_knn_accuracy"] for line in lines(run.folder, "check_knn_accuracy")}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert found == {**run.stopped.to_dict(), "model_step": best}
    states = {checkpoint.step_of(path): path for path in checkpoint.list_complete(run.folder / "checkpoints")}
    saved, kept = load_file(run.folder / "model.safetensors"), load_file(states[best] / "model.safetensors")
    assert all(saved[name].equal(kept[name]) for name in saved)
    evaluate_run(run.folder).save()
    assert json.loads((run.folder / "evaluation.json").read_text())["stopped"] == found, "scoring once more does not forget it"
    with pytest.raises(ValueError, match="is finished"):
        vitrail.resume(run.folder)


@pytest.mark.usefixtures("clothes")
def test_prototypes_in_use_reach_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/pretraining_guard.py plants collapses of a teacher without centring; here the figures are planted."""
    figures = iter([None, 9.0, 1.01, 1.0])
    monkeypatch.setattr(Dino, "prototypes_in_use", lambda task: next(figures))
    heard = io.StringIO()
    head = {"prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8, "center_momentum": 1.0}
    guard = {"images": 64, "every": 0.2}
    run = pretrain(
        tmp_path / "run",
        {"method": "dino", "dino": head, "optim": {"name": "adamw", "lr": 0.1}},
        train={"steps": 10},
        guard=guard,
        console=Console(file=heard, width=400),
    )
    assert run.stopped is not None
    assert (run.stopped.cause, run.steps) == ("one prototype", 6)
    assert "set dino.center_momentum below 1; it is 1" in heard.getvalue()
    counted = {line["step"]: line["check_prototypes"] for line in lines(run.folder, "check_prototypes")}
    assert counted == {2: 9.0, 4: 1.01, 6: 1.0}, "before the first step there are no targets"


@pytest.mark.usefixtures("clothes")
def test_without_sigreg_a_run_that_learns_nothing_is_stopped_though_its_rank_holds(tmp_path: Path) -> None:
    """At a small rate the projections shrink to one for all images, and the embedding hardly moves."""
    slow = PLANTED | {"optim": {"name": "adamw", "lr": 0.3}}
    run = pretrain(tmp_path / "run", slow, guard={"every": 0.25, "images": 64, "rank_drop": 0.1})
    assert run.stopped is not None
    assert (run.stopped.cause, run.steps) == ("no spread", 20)
    shares = {line["step"]: line["check_spread"] for line in lines(run.folder, "check_spread")}
    assert sorted(shares) == [10, 20]
    assert shares[20] < shares[10] < 0.02


@pytest.mark.usefixtures("clothes")
@pytest.mark.parametrize("method", sorted(HEALTHY))
def test_a_healthy_run_goes_to_its_end(tmp_path: Path, method: str) -> None:
    run = pretrain(tmp_path / "run", HEALTHY[method], train={"steps": 20}, guard={"every": 0.1, "images": 128})
    assert (run.stopped, run.steps) == (None, 20)
    assert "stopped" not in json.loads((run.folder / "evaluation.json").read_text())
    steps = [line["step"] for line in lines(run.folder, "check_effective_rank")]
    assert steps == list(range(0, 20, 2)), "before the first step, and every 10 %"


@pytest.mark.slow
@pytest.mark.usefixtures("clothes")
@pytest.mark.parametrize("seed", range(10))
def test_over_ten_seeds_every_collapse_is_caught_and_no_healthy_run_is_stopped(tmp_path: Path, seed: int) -> None:
    run = pretrain(tmp_path / "planted", PLANTED, train={"seed": seed})
    assert run.stopped is not None
    assert run.stopped.step <= STEPS / 5
    for method, case in HEALTHY.items():
        assert pretrain(tmp_path / method, case, train={"seed": seed}).stopped is None, method


@pytest.mark.usefixtures("clothes")
def test_a_resumed_run_collapses_at_the_same_step_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at a step whose check is made after resuming; with evaluations and pictures."""
    over = {"train": {"eval_every": 0.3}}
    straight = pretrain(tmp_path / "straight", PLANTED, **over)
    assert straight.stopped is not None
    with monkeypatch.context() as patched:
        interrupt_at(patched, 4)
        with pytest.raises(KeyboardInterrupt, match="step 4 is saved"):
            pretrain(tmp_path / "broken", PLANTED, **over)
    resumed = vitrail.resume(tmp_path / "broken", console=Console(file=io.StringIO()))
    assert resumed.stopped == straight.stopped
    best = json.loads((straight.folder / "evaluation.json").read_text())["stopped"]["model_step"]
    assert vitrail.load(straight.folder).card.images_seen == LENGTH["batch_size"] * best
    for name in ("model.safetensors", "config.json", "evaluation.json", "pca.png"):
        assert (resumed.folder / name).read_bytes() == (straight.folder / name).read_bytes(), name
    for name in ("check_effective_rank", "val_effective_rank"):
        assert lines(resumed.folder, name) == lines(straight.folder, name)
    assert lines(straight.folder, "val_effective_rank")[0]["step"] == 0
    [mine], [whole] = (checkpoint.list_complete(run.folder / "checkpoints")[-1:] for run in (resumed, straight))
    states = [json.loads((path / "state.json").read_text())["guard"] for path in (mine, whole)]
    assert states[0] == states[1]
    assert len(states[0]) == straight.stopped.step / 2 + 1


@pytest.mark.usefixtures("clothes")
def test_a_run_shows_its_signal_and_says_what_it_was_worth(tmp_path: Path) -> None:
    heard = io.StringIO()
    run = pretrain(
        tmp_path / "run",
        HEALTHY["mae"],
        train={"steps": 12, "eval_every": 0.5, "compare": True},
        console=Console(file=heard, width=300),
    )
    evaluated = [line["step"] for line in lines(run.folder, "val_uniformity")]
    assert evaluated == [0, 6]
    with Image.open(run.folder / "pca.png") as picture, Image.open(run.folder / "curves.png") as curves:
        assert picture.width == 4 + 4 * 76  # originals, and steps 0, 6 and 12
        assert curves.width > 1000
    assert run.comparison is not None
    found = json.loads((run.folder / "pretraining.json").read_text())
    assert found["verdict"] == run.comparison.verdict
    assert found["end"]["images"] == 40
    assert run.comparison.lines()[0] in heard.getvalue()
    scores = json.loads((run.folder / "evaluation.json").read_text())
    assert scores["uniformity_interval"][0] <= scores["uniformity"] <= scores["uniformity_interval"][1]
    assert found["end"]["effective_rank"] == pytest.approx(scores["effective_rank"])


@pytest.mark.usefixtures("clothes")
def test_without_the_guard_nothing_is_checked_or_stopped(tmp_path: Path) -> None:
    run = pretrain(tmp_path / "run", PLANTED, guard={"stop": False}, train={"steps": 10})
    assert (run.stopped, run.comparison, run.steps) == (None, None, 10)
    assert not lines(run.folder, "check_effective_rank")
    assert not (run.folder / "pretraining.json").exists()
