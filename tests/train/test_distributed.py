"""Two processes on one machine, as torchrun starts them: the same run as in one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from cases import ImageFolder, some_slow
from vitrail.data.batches import Part, eval_batches, train_batches
from vitrail.data.memory import FixedSplit
from vitrail.models import build_model, create_model
from vitrail.models.receipt import Receipt
from vitrail.settings import AugmentConfig, ModelConfig, Preprocessing, layers
from vitrail.train import distributed
from vitrail.train import run as run_module
from vitrail.train.distributed import SINGLE_PROCESS, PeerFailed, World, local_device, open_new_store, shard, world

EACH_STEP = "import sys, vitrail.cli, vitrail.train.loop as loop; loop.LOG_EVERY_S = 0.0; sys.exit(vitrail.cli.main())\n"
"""The command line, with a line of metrics for each step."""
SHAPE = {"img_size": "32", "depth": "2", "embed_dim": "32", "num_heads": "2", "pool": "avg"}
PLAIN = {
    "augment.mixup_prob": "0",
    "train.batch_size": "32",
    "train.precision": "fp32",
    "train.device": "cpu",
    "optim.lr": "1e-2",
}
TINY = ["--model", "Ti/16", *(word for key, value in SHAPE.items() for word in (f"--model.{key}", value))]
TINY += [word for key, value in PLAIN.items() for word in (f"--{key}", value)]


@pytest.fixture
def photos(image_folder: ImageFolder) -> Path:
    """27 test and 21 validation images: no number that two processes share evenly."""
    return image_folder({split: dict.fromkeys("abc", count) for split, count in (("train", 40), ("val", 7), ("test", 9))})


def start(words: Sequence[str], *, processes: int, folder: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`vitrail` with these words, in so many processes."""
    script = folder / "each_step.py"
    script.write_text(EACH_STEP)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VITRAIL_TIMEOUT_S": "60", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(words: Sequence[str], *, processes: int, folder: Path) -> str:
    """What it says, until it has ended well."""
    process = start(words, processes=processes, folder=folder)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def train_words(photos: Path, out: str, *more: str) -> list[str]:
    return ["train", str(photos), "--recipe", "from-scratch", *TINY, *more, "--out", out]


def metrics(folder: Path, name: str) -> dict[int, float]:
    """A number of metrics.jsonl by step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def farthest(one: Path, other: Path) -> float:
    """The largest difference of two runs' weights."""
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


MUON = ("--optim.name", "muon", "--train.accumulate", "2", "--optim.clip_norm", "1.0")


@pytest.mark.parametrize("more", [("--optim.name", "adamw"), MUON], ids=["adamw", "muon"])
def test_two_processes_learn_what_one_learns(photos: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """20 steps with a running mean and evaluations on the way: DDP and FSDP2 beside one process."""
    words = [*more, "--train.steps", "20", "--train.ema_decay", "0.9", "--train.eval_every", "3", "--model.stem", "patch"]
    run(train_words(photos, "one", *words), processes=1, folder=tmp_path)
    losses = metrics(tmp_path / "one", "loss")
    assert len(losses) == 20
    for name, option in (("ddp", "false"), ("fsdp", "true")):
        said = run(train_words(photos, name, *words, "--train.shard", option), processes=2, folder=tmp_path)
        assert said.count("training images") == 1, "one process talks"
        assert "2 processes" in said
        assert metrics(tmp_path / name, "loss") == pytest.approx(losses, abs=1e-6)
        assert metrics(tmp_path / name, "val_nll") == pytest.approx(metrics(tmp_path / "one", "val_nll"), abs=1e-6)
        assert farthest(tmp_path / "one", tmp_path / name) < 2e-4, "Muon's steps are as large for the smallest gradients"
        scores = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert scores["count"] == 27, "every test image counts once"
        assert scores["nll"] == pytest.approx(json.loads((tmp_path / "one" / "evaluation.json").read_text())["nll"], abs=1e-5)


def test_two_processes_take_the_same_smaller_model(photos: Path, tmp_path: Path) -> None:
    """The slower one decides; here none is fast enough, and both go on with the fastest model."""
    words = ["train", str(photos), "--recipe", "from-scratch", "--minutes", "0.05", "--train.min_epochs", "1e9"]
    words += ["--train.device", "cpu", "--train.precision", "fp32", "--train.batch_size", "16", "--out", "run"]
    said = run(words, processes=2, folder=tmp_path)
    assert said.count("this machine trains ") == said.count("; taken instead: ") == 1
    assert "64x64 px" in said
    assert layers.from_yaml((tmp_path / "run" / "config.yaml").read_text()).model.img_size == 64


FAMILIES = {
    "swin_t": {"embed_dim": "8", "depths": "[2,2]", "num_heads": "[2,4]", "window_size": "4"},
    "swinv2_t": {"embed_dim": "8", "depths": "[2,2]", "num_heads": "[2,4]", "window_size": "4"},
    "swinv2_cr_t": {"embed_dim": "8", "depths": "[2,2]", "num_heads": "[2,4]", "window_size": "4"},
    "beit_b16": {"embed_dim": "8", "depth": "2", "num_heads": "2", "patch_size": "8", "relative_bias": "both"},
    "cait_xxs24": {"embed_dim": "8", "depth": "2", "num_heads": "2", "patch_size": "8"},
    "cvt_13": {"embed_dims": "[4,6,8]", "depths": "[1,1,2]", "num_heads": "[1,3,2]"},
    "sam_b16": {
        "embed_dim": "8",
        "depth": "2",
        "num_heads": "2",
        "patch_size": "8",
        "window_size": "3",
        "global_blocks": "[1]",
    },
    "R50+B/16": {"embed_dim": "8", "depth": "2", "num_heads": "2", "cnn_depths": "[1,1]", "cnn_width": "32", "patch_size": "8"},
    "vit_small_patch16_rope_mixed": {"embed_dim": "16", "depth": "2", "num_heads": "2", "patch_size": "8"},
}
"""A pyramid, merging between its stages, and shifted windows; blocks of two kinds; batch norms; learned rotary positions."""


@pytest.mark.parametrize("name", some_slow(FAMILIES))
def test_two_processes_learn_another_family_as_one_does(name: str, photos: Path, tmp_path: Path) -> None:
    """DDP and FSDP2 beside one process; with batch norms, whose statistics are those of a process, beside each other."""
    words = ["train", str(photos), "--recipe", "from-scratch", "--model", name, "--model.img_size", "32"]
    words += [word for key, value in FAMILIES[name].items() for word in (f"--model.{key}", value)]
    words += [word for key, value in PLAIN.items() for word in (f"--{key}", value)]
    words += ["--optim.name", "adamw", "--train.steps", "6", "--train.ema_decay", "0.9"]
    ways = {"one": (1, "false"), "ddp": (2, "false"), "fsdp": (2, "true")}
    first, *others = list(ways)[1:] if name == "cvt_13" else list(ways)
    for way in (first, *others):
        processes, shard = ways[way]
        run([*words, "--train.shard", shard, "--out", way], processes=processes, folder=tmp_path)
    losses = metrics(tmp_path / first, "loss")
    assert len(losses) == 6
    for way in others:
        assert metrics(tmp_path / way, "loss") == pytest.approx(losses, abs=1e-5)
        assert farthest(tmp_path / first, tmp_path / way) < 2e-4


def test_two_processes_pretrain_as_one_does(photos: Path, tmp_path: Path) -> None:
    """Attention pooling is part of the score and not of the loss: its weights have no gradient in any process."""
    words = ["pretrain", str(photos), *TINY, "--model.pool", "map", "--train.steps", "8", "--train.eval_every", "1"]
    words += ["--recipe", "mae-photos", "--mae.decoder_dim", "16", "--mae.decoder_depth", "1", "--optim.clip_norm", "1.0"]
    run([*words, "--out", "one"], processes=1, folder=tmp_path)
    said = run([*words, "--out", "two"], processes=2, folder=tmp_path)
    assert "2 processes" in said
    losses = metrics(tmp_path / "one", "loss")
    assert len(losses) == 8
    assert metrics(tmp_path / "two", "loss") == pytest.approx(losses, abs=1e-5)
    assert metrics(tmp_path / "two", "val_knn_accuracy") == metrics(tmp_path / "one", "val_knn_accuracy")
    pictures = [sorted(path.name for path in (tmp_path / name / "reconstructions").iterdir()) for name in ("one", "two")]
    assert pictures[0] == pictures[1]

    process = start([*words, "--out", "no", "--train.shard", "true"], processes=2, folder=tmp_path)
    said, _ = process.communicate(timeout=240)
    assert process.returncode
    assert "train.shard is for the model alone, and train.task mae also trains a decoder; leave it out" in said


VIEWS = ["--views.local_crops", "1", "--views.local_size", "0.5", "--optim.name", "adamw", "--train.eval_every", "1"]
METHODS = {
    "dino": ["--dino.prototypes", "40", "--dino.hidden_dim", "16", "--dino.bottleneck_dim", "8", "--dino.ibot_weight", "0.5"],
    "lejepa": ["--lejepa.projector_dims", "[16]", "--lejepa.projector_out", "8", "--lejepa.directions", "32"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_compare_views_as_one_does(method: str, photos: Path, tmp_path: Path) -> None:
    """Batch norms, statistics and centres of all rows: 27 images, which two processes share unevenly, in parts for DINO."""
    words = ["pretrain", str(photos), "--method", method, *TINY, *VIEWS, *METHODS[method], "--train.batch_size", "27"]
    words += ["--model.patch_size", "8", "--train.steps", "8", *(["--train.accumulate", "3"] if method == "dino" else [])]
    run([*words, "--out", "one"], processes=1, folder=tmp_path)
    run([*words, "--out", "two"], processes=2, folder=tmp_path)
    losses = metrics(tmp_path / "one", "loss")
    assert len(losses) == 8
    assert metrics(tmp_path / "two", "loss") == pytest.approx(losses, abs=1e-6)
    assert metrics(tmp_path / "two", "val_knn_accuracy") == metrics(tmp_path / "one", "val_knn_accuracy")


MASKED = {"simmim": ("--simmim.mask_size", "8"), "beit": ("--beit.codebook", "8", "--model.pool", "map")}
"""Methods with a mask token, the second with a codebook that both processes fit, and with weights that have no gradient."""


@pytest.mark.slow
@pytest.mark.parametrize("method", MASKED)
def test_two_processes_predict_masked_patches_as_one_does(method: str, photos: Path, tmp_path: Path) -> None:
    words = ["pretrain", str(photos), "--method", method, "--recipe", f"{method}-photos", *TINY, "--model.patch_size", "8"]
    words += [*MASKED[method], "--optim.name", "adamw", "--train.steps", "8", "--train.accumulate", "2"]
    run([*words, "--out", "one"], processes=1, folder=tmp_path)
    run([*words, "--out", "two"], processes=2, folder=tmp_path)
    losses = metrics(tmp_path / "one", "loss")
    assert len(losses) == 8
    assert metrics(tmp_path / "two", "loss") == pytest.approx(losses, abs=1e-6)
    assert farthest(tmp_path / "one", tmp_path / "two") < 2e-4
    if method == "beit":
        one, two = (
            load_file(tmp_path / way / "checkpoints" / "step_00000008" / "companions.safetensors") for way in ("one", "two")
        )
        assert torch.equal(one["codebook.centers"], two["codebook.centers"])


WITH = {
    "memory": ["--train.checkpointing", "true", "--train.patch_sizes", "[8,16]", "--model.patch_size", "8"],
    "tuning": ["--optim.freeze", "1", "--optim.layer_decay", "0.7", "--train.compile", "true"],
    "bf16": ["--train.precision", "bf16"],
}
"""What else a user asks for beside many processes."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "within"), [("memory", 1e-6), ("tuning", 1e-6), ("bf16", 1e-3)])
def test_two_processes_learn_what_one_learns_with_all_else(photos: Path, tmp_path: Path, name: str, within: float) -> None:
    """In bf16 the rows of another process are rounded in another order: 2^-8 of a value, averaged over a batch."""
    words = ["--train.steps", "12", "--train.ema_decay", "0.5", "--train.eval_every", "3", "--model.stem", "patch", *WITH[name]]
    run(train_words(photos, "one", *words), processes=1, folder=tmp_path)
    losses = metrics(tmp_path / "one", "loss")
    assert len(losses) == 12
    for way, option in (("ddp", "false"), ("fsdp", "true")):
        run(train_words(photos, way, *words, "--train.shard", option), processes=2, folder=tmp_path)
        assert metrics(tmp_path / way, "loss") == pytest.approx(losses, abs=within)
        assert metrics(tmp_path / way, "val_nll") == pytest.approx(metrics(tmp_path / "one", "val_nll"), abs=within)


@pytest.mark.slow
def test_three_processes_and_fewer_images_than_rows(photos: Path, tmp_path: Path) -> None:
    """A batch of 32 in three processes, 11, 11 and 10 rows, and a validation set of 21: nobody waits, nothing counts twice."""
    words = ["--train.steps", "6", "--train.eval_every", "1", "--model.stem", "patch"]
    for name, processes, option in (("one", 1, "false"), ("ddp", 3, "false"), ("fsdp", 3, "true")):
        run(train_words(photos, name, *words, "--train.shard", option), processes=processes, folder=tmp_path)
        for number in ("loss", "val_nll"):
            assert metrics(tmp_path / name, number) == pytest.approx(metrics(tmp_path / "one", number), abs=1e-6)
        assert json.loads((tmp_path / name / "evaluation.json").read_text())["count"] == 27


def test_a_convolutional_stem_learns_in_two_processes(photos: Path, tmp_path: Path) -> None:
    """Its weights lie in channels_last; its batch norms see the rows of their own process, and all evaluate with the same."""
    words = ["--model.stem", "conv", "--train.steps", "4", "--train.ema_decay", "0.5", "--train.eval_every", "2"]
    for name, option in (("ddp", "false"), ("fsdp", "true")):
        said = run(train_words(photos, name, *words, "--train.shard", option), processes=2, folder=tmp_path)
        assert "strides" not in said, "what nobody can mend is not told"
        scores = json.loads((tmp_path / name / "evaluation.json").read_text())
        said = run(["evaluate", name, "--json"], processes=1, folder=tmp_path)
        assert json.loads(said)["nll"] == pytest.approx(scores["nll"], abs=1e-5)
    assert metrics(tmp_path / "fsdp", "loss") == pytest.approx(metrics(tmp_path / "ddp", "loss"), abs=1e-5)
    assert farthest(tmp_path / "ddp", tmp_path / "fsdp") < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_batch_norms_beside_shards_in_bf16(photos: Path, tmp_path: Path, precision: str) -> None:
    """A BatchNorm's statistics are in fp32, and so stay its weights: the blocks' alone are sent in bf16."""
    words = ["--model.stem", "conv", "--model.embed_dim", "16", "--train.steps", "6", "--train.precision", precision]
    for name, option in (("ddp", "false"), ("fsdp", "true")):
        run(train_words(photos, name, *words, "--train.shard", option), processes=2, folder=tmp_path)
    assert metrics(tmp_path / "fsdp", "loss") == pytest.approx(metrics(tmp_path / "ddp", "loss"), abs=2e-2)


@pytest.mark.parametrize("option", [pytest.param("false", id="ddp", marks=pytest.mark.slow), pytest.param("true", id="fsdp")])
def test_what_two_began_one_ends_and_the_other_way_round(photos: Path, tmp_path: Path, option: str) -> None:
    words = ["--train.steps", "40", "--train.ema_decay", "0.9", "--optim.name", "adamw", "--train.shard", option]
    straight = run(train_words(photos, "straight", *words), processes=2, folder=tmp_path)
    assert "step 40" in straight
    stopped = start(train_words(photos, "two", *words), processes=2, folder=tmp_path)
    wait_for_step(tmp_path / "two", 5)
    stopped.send_signal(signal.SIGTERM)  # torchrun hands it on
    said, _ = stopped.communicate(timeout=60)
    assert "is saved; go on with `vitrail resume two`" in said
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    said = run(["resume", "one"], processes=1, folder=tmp_path)
    assert "resumed at step" in said
    assert farthest(tmp_path / "straight", tmp_path / "one") < 1e-5
    assert "resumed at step" in run(train_words(photos, "two", *words, "--resume", "auto"), processes=2, folder=tmp_path)
    assert farthest(tmp_path / "straight", tmp_path / "two") < 1e-5
    assert "is finished" in run(train_words(photos, "two", *words, "--resume", "auto"), processes=2, folder=tmp_path)


def wait_for_step(folder: Path, step: int) -> None:
    """Until a run has logged this step."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (folder / "metrics.jsonl").exists() and max(metrics(folder, "loss"), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{folder} never came to step {step}")


def test_a_mistake_is_told_once(photos: Path, tmp_path: Path) -> None:
    process = start(train_words(photos, "no", "--model.patch_size", "5"), processes=2, folder=tmp_path)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("vitrail: ") == 1
    assert "vitrail, process" not in said
    assert "image side 32 is not a multiple of patch 5" in said
    assert not (tmp_path / "no").exists()


# --------------------------------------------------------------------------------------------------------------------
# Without processes


def test_alone_nothing_is_sent() -> None:
    assert SINGLE_PROCESS.first
    assert SINGLE_PROCESS.gather("a") == ["a"]
    assert SINGLE_PROCESS.max(2.0, 3.0) == (2.0, 3.0)
    assert torch.equal(SINGLE_PROCESS.sum(torch.ones(2)), torch.ones(2))
    assert SINGLE_PROCESS.run_on_first(lambda: 7) == 7
    SINGLE_PROCESS.barrier()
    SINGLE_PROCESS.broadcast_buffers(nn.BatchNorm2d(2))


@pytest.mark.parametrize(
    ("said", "rank", "raises"),
    [
        ((None, None), 0, None),
        (("no", "no"), 0, "^no$"),
        (("no", "no"), 1, "another process reports"),
        (("no", "none"), 1, "^none$"),
        ((None, "no"), 1, "^no$"),
        ((None, "no"), 0, "another process reports"),
    ],
)
def test_a_mistake_of_all_is_told_by_the_first(
    monkeypatch: pytest.MonkeyPatch, said: tuple[str | None, ...], rank: int, raises: str | None
) -> None:
    monkeypatch.setattr(World, "gather", lambda world, value: list(said))

    def do() -> int:
        if said[rank] is not None:
            raise ValueError(said[rank])
        return 7

    if raises is None:
        assert World(rank, 2).raise_once(do) == 7
        assert SINGLE_PROCESS.raise_once(do) == 7
        return
    with pytest.raises((ValueError, PeerFailed), match=raises):
        World(rank, 2).raise_once(do)


def test_processes_that_start_anew_do_not_meet_those_before() -> None:
    """One store for several starts, as torchrun has it: what the first ones wrote is still there."""
    store = dist.HashStore()
    names = []
    for late in (0, 1, 2):
        with ThreadPoolExecutor(3) as together:
            asked = {}
            for rank in sorted(range(3), key=lambda rank: rank == late):  # that one comes last
                asked[rank] = together.submit(open_new_store, store, rank, 3, seconds=10)
                time.sleep(0.05)
            given = {rank: answer.result(timeout=10) for rank, answer in asked.items()}
        given[0].set("address", str(late))
        assert {other.get("address") for other in given.values()} == {str(late).encode()}
        names.append(given[0])
    assert names[0].get("address") == b"0", "each start has a part of its own"


def test_a_process_that_waits_in_vain_says_so(photos: Path, tmp_path: Path) -> None:
    """As one does that a scheduler's variables were left to."""
    env = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    alone = start(train_words(photos, "alone"), processes=1, folder=tmp_path, env={**env, "VITRAIL_TIMEOUT_S": "2"})
    said, _ = alone.communicate(timeout=120)
    assert alone.returncode == 2
    assert re.fullmatch(
        r"vitrail: process 0 of 2 did not meet the others at localhost:0 \(.*\); start them by torchrun, .*\n", said
    )
    assert not (tmp_path / "alone").exists()


def test_a_process_that_does_not_come_is_named() -> None:
    store = dist.HashStore()
    store.set("vitrail/request/1", "one of those before")
    with pytest.raises(TimeoutError, match=r"^process 1 did not start within 0\.2 s; see why in its own messages$"):
        open_new_store(store, 0, 2, seconds=0.2)


def test_a_process_without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with world(torch.device("cpu")) as processes:
        assert processes == World()


def test_what_is_put_together_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it was told and where it comes from; the other processes keep nothing of it."""
    shape: dict[str, Any] = {"img_size": (32, 32), "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 3}
    cfg = ModelConfig(name="Ti/16", **shape, stem="conv", pos_embed="sincos2d")
    model = build_model(cfg)
    receipt = Receipt(origin="here", file="a.safetensors", sha256=None, licence=None, entries=())
    model.classes, model.receipt, model.multi_label = ("a", "b", "c"), receipt, True
    model.preprocessing = Preprocessing(img_size=(32, 32), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert run_module.gather_model(model, cfg, World(rank=0, size=2)) is model
    monkeypatch.setattr(run_module, "is_sharded", lambda model: True)
    complete = run_module.gather_model(model, cfg, World(rank=0, size=2))
    assert complete is not None
    assert complete is not model
    assert (complete.classes, complete.receipt, complete.multi_label) == (model.classes, model.receipt, True)
    assert complete.preprocessing == model.preprocessing
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(complete(images), model.eval()(images))
    assert run_module.gather_model(model, cfg, World(rank=1, size=2)) is None


def test_parts_need_processes_blocks_and_another_number_type() -> None:
    cpu = torch.device("cpu")
    cnn = create_model("timm:test_resnet", num_classes=3)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        shard(cnn, SINGLE_PROCESS, device=cpu, dtype=None)
    with pytest.raises(ValueError, match="Baseline has none"):
        shard(cnn, World(0, 2), device=cpu, dtype=None)
    model = build_model(ModelConfig(name="Ti/16", img_size=(32, 32), depth=1, embed_dim=32, num_heads=2, num_classes=3))
    with pytest.raises(ValueError, match=r"does not go with fp16.*; use --train\.precision bf16$"):
        shard(model, World(0, 2), device=cpu, dtype=torch.float16)


def test_a_cpu_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_torchrun_gives_each_process_its_gpu(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the only process of a machine: a device without an index can't be set."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(distributed, "current_world", lambda: SINGLE_PROCESS)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    for rank in range(processes):
        chosen: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with world(local_device(torch.device("cuda"))):
            assert chosen == [torch.device("cuda", rank)]


def test_a_gpu_without_torchrun_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with world(local_device(torch.device("cuda"))) as alone:  # torch's current one
        assert (chosen, alone) == ([], SINGLE_PROCESS)
    monkeypatch.setenv("RANK", "0")  # set by hand, without LOCAL_RANK
    with world(local_device(torch.device("cuda"))):
        assert chosen == []
    with world(local_device(torch.device("cuda", 1))):
        assert chosen == [torch.device("cuda", 1)]


def test_processes_may_not_share_a_gpu_nor_outnumber_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert local_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"train\.device cuda:1 is one GPU for 4 processes; use cuda"):
        local_device(torch.device("cuda", 1))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="more than the 2 GPUs of this machine; use 2"):
        local_device(torch.device("cuda"))


def split_of(count: int) -> FixedSplit:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return FixedSplit(pixels, labels=torch.arange(count) % 3, names=[str(number) for number in range(count)])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_parts_of_the_batches_are_the_batches(count: int) -> None:
    options: dict[str, Any] = {"batch_size": 8, "seed": 3, "augment": AugmentConfig(crop="none"), "start_step": 2}
    whole = train_batches(split_of(30), **options)
    parts = [train_batches(split_of(30), **options, part=Part(index, count)) for index in range(count)]
    for _ in range(6):
        epoch, batch = next(whole)
        own = [next(part) for part in parts]
        assert {number for number, _ in own} == {epoch}
        assert torch.equal(torch.cat([rows.indexes for _, rows in own]), batch.indexes)


@pytest.mark.parametrize("images", [1, 5, 8, 16, 17])
def test_every_image_is_scored_by_one_part_in_as_many_batches(images: int) -> None:
    parts = [list(eval_batches(split_of(images), batch_size=4, part=Part(index, 2))) for index in range(2)]
    assert len(parts[0]) == len(parts[1])
    seen = torch.cat([batch.indexes for part in parts for batch in part])
    assert sorted(seen.tolist()) == list(range(images))


def test_a_batch_has_an_image_for_each_process() -> None:
    with pytest.raises(ValueError, match="a batch of 2 images can't be shared by 3 processes; use 2 at most"):
        next(train_batches(split_of(30), batch_size=2, seed=0, augment=AugmentConfig(crop="none"), part=Part(0, 3)))
