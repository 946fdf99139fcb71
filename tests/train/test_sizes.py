"""Sizes and patches over a run: by value, by property, and in a training that is stopped and resumed."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, fx, nn

import vitrail
from interrupts import interrupt_at
from vitrail.data.augment import augment
from vitrail.data.batch import Batch, RawBatch
from vitrail.models import ViT, meta_model
from vitrail.models.backbone import Backbone
from vitrail.settings import AugmentConfig, ModelConfig, Pair, Preprocessing, TrainConfig
from vitrail.settings.layers import build
from vitrail.train.pace import Pace
from vitrail.train.run import Run
from vitrail.train.sizes import check_sizes, list_sizes, patch_at, size_at
from vitrail.train.step import Step

# --------------------------------------------------------------------------------------------------------------------
# Pure functions


@pytest.mark.parametrize(
    ("start", "stages", "full", "patch", "sizes"),
    [
        (160, 1, (224, 224), (16, 16), [(160, 160), (224, 224)]),
        (128, 3, (224, 224), (16, 16), [(128, 128), (160, 160), (192, 192), (224, 224)]),
        (128, 4, (224, 224), (16, 16), [(128, 128), (144, 144), (176, 176), (192, 192), (224, 224)]),  # 152, 176, 200 down
        (96, 2, (112, 112), (16, 16), [(96, 96), (112, 112)]),  # no size between: none is the full one before its time
        (48, 2, (96, 128), (16, 16), [(48, 64), (64, 80), (96, 128)]),  # the width nearest to 4/3 of the height
        (56, 1, (224, 112), (14, 14), [(112, 56), (224, 112)]),
        (24, 2, (48, 96), (8, 16), [(24, 48), (32, 64), (48, 96)]),
        (224, 5, (224, 224), (16, 16), [(224, 224)]),
    ],
)
def test_sizes_by_value(start: int, stages: int, full: Pair, patch: Pair, sizes: list[Pair]) -> None:
    shape: dict[str, Any] = {"start": start, "stages": stages, "full": full, "patch": patch}
    walked = [size_at(i / 320, full_from=0.75, **shape) for i in range(321)]
    assert [size for size, _ in itertools.groupby(walked)] == sizes
    for stage in range(stages):  # each lasts as long, and begins where its share of the run is reached
        assert walked[240 * stage // stages] == size_at(0.75 * (stage + 0.5) / stages, full_from=0.75, **shape)
    model = meta_model(ModelConfig(img_size=full, patch_size=patch, embed_dim=16, num_heads=1, depth=0))
    assert list(list_sizes(TrainConfig(start_size=start, size_stages=stages), model)) == sizes


@settings(max_examples=80, deadline=None)
@given(
    patch=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    first=st.integers(1, 20),
    stages=st.integers(1, 6),
    full_from=st.floats(0.01, 1.0),
    shares=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20),
)
def test_sizes_go_up_in_whole_patches_from_the_start_to_the_full_one(
    patch: Pair, grid: Pair, first: int, stages: int, full_from: float, shares: list[float]
) -> None:
    full = grid[0] * patch[0], grid[1] * patch[1]
    axis = full.index(min(full))
    assume(first <= grid[axis])
    start = first * patch[axis]

    def at(share: float) -> Pair:
        return size_at(share, start=start, stages=stages, full_from=full_from, full=full, patch=patch)

    assert at(0.0)[axis] == start
    assert at(full_from) == at(1.0) == full
    before = at(0.0)
    for share in sorted(shares):
        now = at(share)
        assert all(a <= b <= whole for a, b, whole in zip(before, now, full, strict=True))
        assert not any(side % part for side, part in zip(now, patch, strict=True))
        assert min(now) > 0
        if start < full[axis]:
            assert (now[axis] == full[axis]) == (share >= full_from)
        long = 1 - axis
        if now[long] > patch[long]:  # the shape stays, within half a patch
            assert abs(now[long] - full[long] * now[axis] / full[axis]) <= patch[long] / 2 + 1e-9
        before = now


FIRST_PATCHES = [32, 16, 32, 32, 8, 16, 16, 32, 32, 32]


def test_patches_by_value() -> None:
    patches = (8, 16, 32)
    drawn = [patch_at(step, patches=patches, seed=0) for step in range(1800)]
    assert drawn[:10] == FIRST_PATCHES
    assert drawn[:50] != [patch_at(step, patches=patches, seed=1) for step in range(50)]
    assert all(abs(count - 600) < 5 * 600**0.5 for count in Counter(drawn).values())
    pairs = Counter(itertools.pairwise(drawn))
    assert len(pairs) == 9
    assert all(abs(count - 200) < 5 * 200**0.5 for count in pairs.values()), "a step tells nothing of the next"
    assert {patch_at(step, patches=(14,), seed=3) for step in range(5)} == {14}


def model_of(fields: dict[str, Any]) -> Backbone:
    return meta_model(build([{"model": fields}]).model)


@pytest.mark.parametrize(
    ("model", "train", "said"),
    [
        ({}, {"start_size": 256}, "train.start_size 256 is larger than the images' full side 224; use 208, or a larger model."),
        ({"img_size": 16}, {"start_size": 32}, "train.start_size 32 is larger than the images' full side 16; leave it out"),
        ({}, {"start_size": 100}, "train.start_size 100 is not a multiple of 16, the patch; use 96"),
        ({}, {"start_size": 5}, "train.start_size 5 is not a multiple of 16, the patch; use 16"),
        ({"img_size": (224, 96)}, {"start_size": 112}, "train.start_size 112 is larger than the images' full side 96; use 80"),
        ({"patch_size": (8, 16)}, {"start_size": 20}, "train.start_size 20 is not a multiple of 8, the patch; use 16"),
        (
            {"img_size": 240},
            {"start_size": 100, "patch_sizes": (8, 12)},
            "train.start_size 100 is not a multiple of 24, which all of train.patch_sizes 8, 12 divide; use 96",
        ),
        ({}, {"patch_sizes": (16, 15)}, "train.patch_sizes: 15 does not divide the image side 224; use 14"),
        ({"img_size": (224, 96)}, {"patch_sizes": (16, 14)}, "train.patch_sizes: 14 does not divide the image side 96; use 16"),
        ({}, {"patch_sizes": (500,)}, "train.patch_sizes: 500 does not divide the image side 224; use 224"),
        (
            {"stem": "conv"},
            {"patch_sizes": (16, 32)},
            'a model with stem "conv" cuts its own patches of 16x16 and no others, no',
        ),
        (
            {"name": "torchvision:resnet18"},
            {"patch_sizes": (16,)},
            'train.patch_sizes are for a ViT, and "torchvision:resnet18" cuts no patches; leave them out',
        ),
    ],
)
def test_sizes_and_patches_that_can_t_be(model: dict[str, Any], train: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared as a whole below
        check_sizes(TrainConfig(**train), model_of(model))
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({}, {}),
        ({}, {"start_size": 224}),
        ({}, {"start_size": 16, "size_stages": 20}),
        ({"stem": "conv"}, {"patch_sizes": (16,), "start_size": 96}),
        ({"img_size": 240}, {"patch_sizes": (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)}),  # FlexiViT's own
        ({"name": "torchvision:resnet18"}, {"start_size": 161}),
    ],
)
def test_sizes_and_patches_that_can_be(model: dict[str, Any], train: dict[str, Any]) -> None:
    check_sizes(TrainConfig(**train), model_of(model))


# --------------------------------------------------------------------------------------------------------------------
# What each crop does at another size


def raw(images: Tensor) -> RawBatch:
    count, _, height, width = images.shape
    return RawBatch(
        images=images,
        sizes=torch.tensor([[height, width]]).expand(count, 2),
        boxes=torch.tensor([[0.0, 0.0, height, width]]).expand(count, 4),
        labels=torch.zeros(count, dtype=torch.long),
        indexes=torch.arange(count),
    )


def seen(batch: RawBatch, size: Pair, **fields: Any) -> Tensor:
    as_it_is = Preprocessing(img_size=size, in_channels=1, mean=(0.0,), std=(1 / 255,))
    return augment(batch, cfg=AugmentConfig(flip=0.0, **fields), preprocessing=as_it_is, num_classes=2, seed=0, epoch=0).images


def test_views_are_made_smaller_by_averaging_and_bilinear_reading() -> None:
    """Crops "none" and "pad" start from the view at the full size: half of it is the mean of four, nothing aliases."""
    images = torch.randint(0, 256, (3, 1, 28, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    half = seen(raw(images), (14, 10), crop="none")
    torch.testing.assert_close(half, F.avg_pool2d(images.float(), 2), atol=1e-3, rtol=0)
    three_quarters = seen(raw(images), (21, 15), crop="none")
    torch.testing.assert_close(three_quarters, F.interpolate(images.float(), (21, 15), mode="bilinear"), atol=1e-3, rtol=0)
    assert torch.equal(seen(raw(images), (28, 20), crop="none"), images.float())


def test_a_padded_crop_moves_by_the_same_share_of_the_image() -> None:
    images = torch.full((1, 1, 28, 28), 200, dtype=torch.uint8)
    moved = raw(images)
    moved.boxes[:, :2] += torch.tensor([-4.0, 8.0])  # the crop reaches 4 pixels over the top and 8 over the right
    expected = torch.zeros(1, 1, 14, 14)
    expected[..., 2:, :-4] = 200
    torch.testing.assert_close(seen(moved, (14, 14), crop="pad"), expected, atol=1e-3, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# In a training

TINY = {"name": "Ti/7", "embed_dim": 12, "num_heads": 2, "depth": 2}
LENGTH = {"steps": 10, "batch_size": 16, "device": "cpu", "precision": "fp32"}


def train(out: Path, *, console: Console | None = None, path: str | Path = "mnist", **over: Any) -> Run:
    sections: dict[str, Any] = {"model": TINY, "train": LENGTH, "augment": {"crop": "pad"}, "optim": {"name": "adamw"}}
    for name, section in over.items():
        sections[name] = sections.get(name, {}) | section
    return vitrail.train(path, out=out, console=console or Console(file=StringIO()), **sections)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pair, int | None]]:
    """The size and the patch of every step that the model is moved by."""
    seen: list[tuple[Pair, int | None]] = []
    move = Step.__call__

    def noted(step: Step, batch: Batch) -> dict[str, Tensor]:
        seen.append(((batch.images.shape[2], batch.images.shape[3]), batch.patch_size))
        return move(step, batch)

    monkeypatch.setattr(Step, "__call__", noted)
    return seen


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Pair, bool]]:
    """Side of the images, patch, and whether it learns, of every pass through the model."""
    seen: list[tuple[int, Pair, bool]] = []
    embed = ViT.embed

    def noted(model: ViT, images: Tensor, **how: Any) -> Any:
        tokens = embed(model, images, **how)
        patch = how.get("patch_size") or model.config.patch_size
        assert tokens[0].shape[1] == 1 + (images.shape[2] // patch) ** 2
        seen.append((images.shape[2], patch, model.training))
        return tokens

    monkeypatch.setattr(ViT, "embed", noted)
    return seen


@pytest.mark.usefixtures("idx_set")
def test_the_finish_at_a_higher_resolution_begins_at_its_step(tmp_path: Path, steps: list[tuple[Pair, int | None]]) -> None:
    out = StringIO()
    run = train(tmp_path / "run", console=Console(file=out), train={"start_size": 14, "full_size_from": 0.7})
    assert steps == [((14, 14), None)] * 7 + [((28, 28), None)] * 3
    said = [line for line in out.getvalue().splitlines() if "images have" in line]
    assert said == [
        "step 0: images have 14x14 px from here on",
        "step 7: images have 28x28 px from here on",
    ]
    model = vitrail.load(run.folder)
    assert (model.config.img_size, model.grid) == ((28, 28), (4, 4))
    assert model.preprocessing is not None
    assert model.preprocessing.img_size == (28, 28)


@pytest.mark.usefixtures("idx_set")
def test_sizes_go_up_in_stages_and_evaluations_see_the_full_size(
    tmp_path: Path, steps: list[tuple[Pair, int | None]], grids: list[tuple[int, Pair, bool]]
) -> None:
    sizes = {"start_size": 14, "size_stages": 2, "full_size_from": 0.8}
    train(tmp_path / "run", data={"val_fraction": 0.2}, train={**sizes, "eval_every": 1.0})
    assert [size[0] for size, _ in steps] == [14] * 4 + [21] * 4 + [28] * 2
    assert {(side, patch) for side, patch, learns in grids if not learns} == {(28, 7)}
    assert any(not learns for *_, learns in grids[:-1]), "it was evaluated on the way"


@pytest.mark.usefixtures("idx_set")
def test_without_these_settings_nothing_changes(tmp_path: Path, steps: list[tuple[Pair, int | None]]) -> None:
    out = StringIO()
    plain = train(tmp_path / "plain", console=Console(file=out))
    assert steps == [((28, 28), None)] * 10
    assert "images have" not in out.getvalue()
    same = train(tmp_path / "same", train={"start_size": 28})
    assert (plain.folder / "model.safetensors").read_bytes() == (same.folder / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize("broken_at", [3, 6, 11])
def test_sizes_and_patches_resumed_are_uninterrupted_bit_for_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[Pair, int | None]],
    grids: list[tuple[int, Pair, bool]],
    broken_at: int,
) -> None:
    """Both settings at once, with draws of every kind: stopped in a stage, between two and in the finish."""
    fields: dict[str, Any] = {
        "model": {"drop_rate": 0.2, "patch_drop_rate": 0.25},
        "augment": {"crop": "resized", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "erase_prob": 0.3},
        "optim": {"name": "muon"},
        "train": {"steps": 12, "start_size": 14, "full_size_from": 0.75, "patch_sizes": (7, 14, 2), "eval_every": 0.0},
    }
    monkeypatch.setattr(ViT, "drop_patches", lambda model, x, mask: (x, mask))  # `grids` counts tokens
    straight = train(tmp_path / "straight", **fields)
    walked = list(steps)
    assert [size[0] for size, _ in walked] == [14] * 9 + [28] * 3
    assert [patch for _, patch in walked] == [patch_at(step, patches=(7, 14, 2), seed=0) for step in range(12)]
    assert len({patch for _, patch in walked}) == 3
    assert [(side, patch) for side, patch, learns in grids if learns] == [(size[0], patch) for size, patch in walked]
    steps.clear()
    with monkeypatch.context() as patched:
        interrupt_at(patched, broken_at)
        with pytest.raises(KeyboardInterrupt, match=f"step {broken_at} is saved"):
            train(tmp_path / "broken", **fields)
    resumed = vitrail.resume(tmp_path / "broken", console=Console(file=StringIO()))
    assert steps == walked
    assert (resumed.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
@pytest.mark.parametrize("crop", ["resized", "none"])
def test_photographs_train_at_every_size(
    tmp_path: Path, image_folder: Callable[..., Path], steps: list[tuple[Pair, int | None]], memory_gb: float, crop: str
) -> None:
    """From memory and from disk, where crops are cut at the full size and made smaller on the device; a wide model."""
    photos = image_folder({split: {"cat": 8, "dog": 8} for split in ("train", "val", "test")})
    run = train(
        tmp_path / "run",
        path=photos,
        model={"img_size": (14, 28)},
        data={"memory_gb": memory_gb, "workers": 0},
        augment={"crop": crop},
        train={"steps": 4, "start_size": 7, "full_size_from": 0.5},
    )
    assert [size for size, _ in steps] == [(7, 14)] * 2 + [(14, 28)] * 2
    losses = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert all(0 < loss < 10 for loss in losses)


@pytest.mark.usefixtures("idx_set")
def test_a_start_that_can_t_be_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^train.start_size 15 is not a multiple of 7, the patch; use 14$"):
        train(tmp_path / "run", train={"start_size": 15})
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------------------------
# Minutes


@pytest.mark.parametrize(("full_from", "stages"), [(0.5, 1), (0.9, 1), (0.9, 3)])
@pytest.mark.parametrize("start", [64, 160])
def test_a_run_of_minutes_reaches_its_full_size_and_ends_on_time(full_from: float, stages: int, start: int) -> None:
    """A step costs as many times more as its images have pixels: up to 12 times, all at once."""
    pace, step, elapsed = Pace(None, seconds=120.0), 0, 0.0
    reached, before = 0.0, (0, 0)
    while not pace.finished(step):
        size = size_at(pace.progress(step), start=start, stages=stages, full_from=full_from, full=(224, 224), patch=(16, 16))
        assert size >= before, "no fit of the steps to the time takes the images back"
        if size == (224, 224) != before:
            reached = elapsed
        before = size
        elapsed += 0.6 * (size[0] / 224) ** 2
        step += 1
        pace.advance(step, elapsed)
        pace = Pace.from_state(pace.state()) if step == 150 else pace  # stopped and resumed
    assert elapsed == pytest.approx(120.0, rel=0.03)
    assert full_from - 0.02 <= reached / 120.0 <= full_from + (0.02 if stages == 1 else 0.05)


# --------------------------------------------------------------------------------------------------------------------
# Compiled


@pytest.mark.slow
def test_blocks_are_compiled_once_more_when_the_size_changes_and_never_again(unchecked: ModuleType) -> None:
    model = unchecked.ViT(img_size=32, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5).train()
    compiled: list[fx.GraphModule] = []

    def counted(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in model.blocks:
        assert isinstance(block, nn.Module)
        block.compile(backend=counted)
    counts = []
    for side, patch in [(16, 4), (16, 4), (20, 4), (24, 4), (32, 4), (32, 8), (16, 4)]:
        model(torch.randn(2, 3, side, side), patch_size=patch).sum().backward()
        counts.append(len(compiled))
    torch._dynamo.reset()
    assert counts[0] == counts[1]
    assert counts[2:] == [2 * counts[0]] * 5
