"""A training step never waits for the device: on one without values, everything that would read one raises."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from device_without_values import DEVICE, Waits, never_waits

from vitrail.data.augment import crop_boxes
from vitrail.data.batch import RawBatch
from vitrail.data.draws import Draws
from vitrail.models import create_model
from vitrail.models.backbone import Backbone
from vitrail.settings import (
    AugmentConfig,
    BeitPretrainConfig,
    DinoConfig,
    LejepaConfig,
    MaeConfig,
    OptimConfig,
    Preprocessing,
    RandAugment,
    SimmimConfig,
    ViewsConfig,
)
from vitrail.tasks import Task
from vitrail.tasks.beit import BeitPretraining
from vitrail.tasks.classify import Classify, MultiLabel
from vitrail.tasks.dino import Dino
from vitrail.tasks.lejepa import Lejepa
from vitrail.tasks.mae import Mae
from vitrail.tasks.simmim import Simmim
from vitrail.train import optim
from vitrail.train.history import History
from vitrail.train.step import Ema, Step

SIZE = (24, 32)
PREPROCESSING = Preprocessing(img_size=SIZE, in_channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
AUGMENTS = {
    "plain": AugmentConfig(),
    "pad": AugmentConfig(crop="pad"),
    "deit": AugmentConfig(
        crop="resized", rand_augment=RandAugment(), mixup_alpha=0.8, cutmix_alpha=1.0, erase_prob=0.7, color_jitter=0.3
    ),
    "three": AugmentConfig(crop="resized", three_augment=True, color_jitter=0.3, cutmix_alpha=1.0),
}
TASKS: dict[str, Any] = {
    "classify": lambda model, cfg: Classify(model, preprocessing=PREPROCESSING, augment=cfg, label_smoothing=0.1),
    "labels": lambda model, cfg: MultiLabel(model, preprocessing=PREPROCESSING, augment=cfg, loss="bce"),
    "mae": lambda model, cfg: Mae(model, preprocessing=PREPROCESSING, cfg=MaeConfig(), augment=cfg, seed=0),
}
WITH_MASK_TOKEN: dict[str, Any] = {
    "simmim": lambda model, cfg: Simmim(model, preprocessing=PREPROCESSING, cfg=SimmimConfig(), augment=cfg, seed=0),
    "beit": lambda model, cfg: BeitPretraining(
        model, preprocessing=PREPROCESSING, cfg=BeitPretrainConfig(), codes=64, augment=cfg, seed=0, device=DEVICE
    ),
}
VIEWS: dict[str, Any] = {
    "dino": (Dino, DinoConfig(prototypes=32, hidden_dim=16, bottleneck_dim=8)),
    "ibot": (Dino, DinoConfig(prototypes=32, hidden_dim=16, bottleneck_dim=8, ibot_weight=1.0)),
    "lejepa": (Lejepa, LejepaConfig(projector_dims=(16,), projector_out=8, directions=16)),
}
"""Tasks on views, which take whole images."""


@pytest.fixture(autouse=True)
def _unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no fused AdamW on the meta device."""
    adamw = torch.optim.AdamW
    monkeypatch.setattr(optim, "AdamW", lambda groups, betas, fused: adamw(groups, betas=betas))


def raw_batch(cfg: AugmentConfig, *, labels: bool, turns: bool) -> RawBatch:
    count, g = 16, torch.Generator().manual_seed(0)
    sizes = torch.stack([torch.randint(40, 101, (count,), generator=g), torch.randint(40, 141, (count,), generator=g)], dim=1)
    images = torch.randint(0, 256, (count, 3, 100, 140), dtype=torch.uint8, generator=g)
    if cfg.crop != "resized":
        sizes = torch.tensor([SIZE]).repeat(count, 1)
        images = images[:, :, : SIZE[0], : SIZE[1]]
    indexes = torch.arange(count)
    again = indexes % 2 if turns else None
    boxes = crop_boxes(sizes, Draws(seed=0, epoch=1, indexes=indexes, turns=again), cfg)
    targets = (torch.rand(count, 5, generator=g) < 0.3).float() if labels else None
    return RawBatch(images, sizes, boxes, indexes % 5, indexes, again, targets)


def steps(task: Task, raw: RawBatch, *, model: Backbone, optimizer: str, ema: bool) -> None:
    optimizers = optim.build_optimizers(
        model, OptimConfig(name=optimizer, layer_decay=0.8), batch_size=len(raw), companions=task.companions()
    )
    step, history = Step(task, optimizers, clip_norm=1.0), History()
    mean = Ema(model, create_model("Ti/8", img_size=SIZE, num_classes=5).to(DEVICE), 0.99) if ema else None
    for number in range(3):
        with never_waits() if number else nullcontext():  # constants are copied to the device in the first step
            optimizers.set_lr(0.1 * number)
            batch = task.batch(raw.pixels_to(DEVICE), epoch=1, img_size=SIZE)
            assert {value.device for name, value in batch.tensors().items() if name != "indexes"} == {DEVICE}
            task.before_step(step=number, epoch=1, progress=0.1 * number)
            losses = step(batch)
            task.after_step(number)
            if mean is not None:
                mean.update(number)
            history.add(number, 1, batch, losses)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("name", TASKS)
def test_a_training_step_never_waits_for_the_device(name: str, augment: str) -> None:
    cfg = AUGMENTS[augment]
    model = create_model("Ti/8", img_size=SIZE, num_classes=5, drop_path_rate=0.0 if name == "mae" else 0.1)
    task = TASKS[name](model, cfg)
    task.to(DEVICE).train()
    raw = raw_batch(cfg, labels=name == "labels", turns=augment == "deit")
    steps(task, raw, model=model, optimizer="muon" if name == "classify" else "adamw", ema=name == "classify")


@pytest.mark.parametrize("name", VIEWS)
def test_nor_does_one_on_views(name: str) -> None:
    whole = AugmentConfig(crop="whole")
    raw = raw_batch(whole, labels=False, turns=True)
    model = create_model("Ti/8", img_size=SIZE, num_classes=0, depth=2, drop_path_rate=0.1)
    kind, cfg = VIEWS[name]
    views, sizes = ViewsConfig(local_crops=2, local_size=0.4), torch.tensor([[90, 120]]).repeat(16, 1)
    task = kind(model, preprocessing=PREPROCESSING, cfg=cfg, views=views, sizes=sizes, seed=0)
    steps(task.to(DEVICE).train(), raw, model=model, optimizer="muon", ema=False)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Ti+/8", {}),
        ("swin_t", {}),
        ("swinv2_t", {}),
        ("swinv2_cr_t", {"window_ratio": 2}),
        ("beit_b16", {"depth": 2, "patch_size": 8}),
        ("cait_xxs24", {"patch_size": 8, "depth": 2}),
        ("cvt_13", {"depths": (1, 1, 2)}),
        ("R50+B/16", {"depth": 2, "cnn_depths": (1, 1), "patch_size": 8}),
        ("vit_base_resnet26d", {"depth": 2, "cnn_depths": (1, 1), "patch_size": 8}),
        ("dinov3_s16", {"depth": 2, "patch_size": 8}),
        ("sam_b16", {"depth": 2, "patch_size": 8, "window_size": 3}),
        ("sam3_l14", {"depth": 2, "patch_size": 8, "window_size": 3}),
        ("vit_dpwee_patch16_reg1_gap_256", {"depth": 2, "patch_size": 8}),
        ("vit_relpos_small_patch16_224", {"depth": 2, "patch_size": 8}),
        ("vit_srelpos_small_patch16_224", {"depth": 2, "patch_size": 8}),
    ],
)
def test_nor_does_that_of_another_backbone(name: str, fields: dict[str, Any]) -> None:
    cfg = AUGMENTS["deit"]
    model = create_model(name, img_size=SIZE, num_classes=5, **fields)
    task = TASKS["classify"](model, cfg).to(DEVICE).train()
    steps(task, raw_batch(cfg, labels=False, turns=False), model=model, optimizer="sgd", ema=False)


@pytest.mark.parametrize("name", WITH_MASK_TOKEN)
def test_nor_does_one_with_a_mask_token(name: str) -> None:
    cfg = AUGMENTS["deit"]
    model = create_model("Ti/8", img_size=SIZE, num_classes=0, depth=2)
    task = WITH_MASK_TOKEN[name](model, cfg).to(DEVICE).train()
    steps(task, raw_batch(cfg, labels=False, turns=True), model=model, optimizer="adamw", ema=False)


def test_nor_does_one_of_images_of_many_sizes() -> None:
    cfg = AUGMENTS["deit"]
    model = create_model("Ti/8", img_size=SIZE, num_classes=5)
    task = Classify(model, preprocessing=PREPROCESSING, augment=cfg, pack=True).to(DEVICE).train()
    steps(task, raw_batch(cfg, labels=False, turns=True), model=model, optimizer="adamw", ema=False)


def test_whatever_waits_is_noticed() -> None:
    numbers = torch.zeros(4, device=DEVICE)
    with pytest.raises(Waits, match="a blocking copy"), never_waits():
        torch.zeros(4).to(DEVICE)
    with pytest.raises(Waits, match="on the device"), never_waits():
        torch.tensor([1.0, 2.0], device=DEVICE)
    with pytest.raises(Waits, match="takes tensors of"), never_waits():
        numbers[torch.arange(2)]
    for read in (lambda: numbers[0].item(), lambda: numbers.nonzero(), lambda: numbers[numbers > 0], lambda: numbers.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError)), never_waits():
            read()
