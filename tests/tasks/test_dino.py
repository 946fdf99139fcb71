"""DINO and iBOT: losses and gradients beside the papers' formulas written straight; centre, schedules, teacher and masks."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.memory import FixedSplit, whole_boxes
from vitrail.models import Swin, ViT, create_model, meta_model
from vitrail.models.backbone import Backbone, MaskedPatches, View
from vitrail.settings import DinoConfig, Preprocessing, Settings, ViewsConfig, layers
from vitrail.tasks import TASKS
from vitrail.tasks.across import LEAST_STEPS
from vitrail.tasks.dino import Dino, patch_loss, teacher_momentum, teacher_temperature, view_loss
from vitrail.tasks.prototypes import Center, DinoHead, InUse

IMAGES = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
SMALL = DinoConfig(prototypes=20, hidden_dim=12, bottleneck_dim=6)
IBOT = replace(SMALL, ibot_weight=0.7)


def model() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0)


def swin(*depths: int) -> Swin:
    torch.manual_seed(0)
    heads = (1, 2)[: len(depths)]
    return Swin(img_size=16, patch_size=2, embed_dim=8, depths=depths, num_heads=heads, window_size=2, num_classes=0)


def task(backbone: Backbone | None = None, *, cfg: DinoConfig = SMALL, apart: bool = True, crops: int = 1) -> Dino:
    """A task; its teacher and centre are not those of the start where they are to be told `apart`."""
    backbone = backbone or model()
    torch.manual_seed(1)
    views = ViewsConfig(global_crops=2, local_crops=crops, local_size=0.5)
    learner = Dino(backbone, preprocessing=IMAGES, cfg=cfg, views=views, sizes=torch.full((50, 2), 20), seed=0).train()
    if apart:
        with torch.no_grad():
            for weight in (*learner.teacher.parameters(), *learner.teacher_head.parameters()):
                weight.add_(torch.randn_like(weight), alpha=0.1)
            for center in (learner.center, *([learner.masked.center] if learner.masked else [])):
                center.mean.normal_(std=0.1)
    return learner


def raw(indexes: list[int]) -> RawBatch:
    pixels = torch.randint(0, 256, (len(indexes), 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[20, 20]]).expand(len(indexes), 2)
    return RawBatch(pixels, sizes, whole_boxes(sizes), torch.full((len(indexes),), -1), torch.tensor(indexes))


def batch(learner: Dino, indexes: list[int] | None = None) -> Batch:
    return learner.batch(raw(indexes or [1, 4, 7, 9]), epoch=0, img_size=(16, 16))


# --------------------------------------------------------------------------------------------------------------------
# The papers' formulas, one view after the other


def straight_head(head: DinoHead, x: Tensor) -> Tensor:
    for layer in head.mlp:
        x = layer(x)
    x = x / x.norm(dim=-1, keepdim=True)
    weight = head.last_layer.weight
    return x @ (weight / weight.norm(dim=1, keepdim=True)).T


def straight_softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(-1, keepdim=True)


def straight_dino(learner: Dino, shown: Batch) -> Tensor:
    """Algorithm 1 of Caron et al. 2021, with multi-crop, on views that stand in their order."""
    assert shown.views is not None
    flat = [(number, group[:, v]) for number, group in enumerate(shown.views) for v in range(group.shape[1])]
    masks = shown.view_masks
    losses = []
    for t, (smaller, seen) in enumerate(flat):
        if smaller:
            continue
        with torch.no_grad():
            target = straight_head(learner.teacher_head, learner.teacher.features(seen).pooled)
            target = straight_softmax((target - learner.center.mean) / learner.temperature)
        for s, (_, view) in enumerate(flat):
            if s == t:
                continue
            pooled = learner.model.features(view, View(masked=masked(learner, masks, s))).pooled
            output = straight_softmax(straight_head(learner.head, pooled) / 0.1)
            losses.append(-(target * output.log()).sum(-1).mean())
    return sum(losses, torch.zeros(())) / len(losses)


def masked(learner: Dino, masks: Tensor | None, view: int) -> MaskedPatches | None:
    if masks is None or learner.masked is None or view >= masks.shape[1]:
        return None
    return MaskedPatches(masks[:, view], learner.masked.mask_token)


def straight_ibot(learner: Dino, shown: Batch) -> Tensor:
    """Equation 2 of Zhou et al. 2022: a mean over the masked patches of each view, then over views and images."""
    assert shown.views is not None
    assert shown.view_masks is not None
    assert learner.masked is not None
    losses = []
    for v in range(2):
        for row, image in enumerate(shown.views[0][:, v]):
            mask = shown.view_masks[row, v]
            if not mask.any():
                losses.append(torch.zeros(()))
                continue
            seen = learner.teacher.features(image[None]).tokens[0, 1:]  # type: ignore[index]
            view = View(masked=MaskedPatches(mask[None], learner.masked.mask_token))
            tokens = learner.model.features(image[None], view).tokens[0, 1:]  # type: ignore[index]
            with torch.no_grad():
                target = straight_head(learner.teacher_head, seen[mask]) - learner.masked.center.mean
                target = straight_softmax(target / learner.temperature)
            output = straight_softmax(straight_head(learner.head, tokens[mask]) / 0.1)
            losses.append(-(target * output.log()).sum(-1).mean())
    return sum(losses, torch.zeros(())) / len(losses)


@pytest.mark.parametrize("crops", [0, 1, 3])
@pytest.mark.parametrize("cfg", [SMALL, IBOT], ids=["dino", "ibot"])
def test_loss_and_gradient_are_the_papers(cfg: DinoConfig, crops: int) -> None:
    learner = task(cfg=cfg, crops=crops)
    shown = batch(learner)
    losses = learner(shown)
    losses["loss"].backward()
    ours = {name: value.grad for name, value in learner.named_parameters() if value.requires_grad}
    learner.zero_grad()
    expected = straight_dino(learner, shown)
    if cfg.ibot_weight:
        torch.testing.assert_close(losses["dino"], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(losses["ibot"], straight_ibot(learner, shown), atol=1e-5, rtol=1e-5)
        expected = expected + 0.7 * straight_ibot(learner, shown)
    expected.backward()
    torch.testing.assert_close(losses["loss"], expected, atol=1e-5, rtol=1e-5)
    for name, value in learner.named_parameters():
        if not value.requires_grad:
            assert name.startswith("teacher")
            continue
        frozen = name == "head.last_layer.weight"  # in the first epoch
        expected = value.grad * (0 if frozen else 1)  # type: ignore[operator]
        largest = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(ours[name], expected, atol=1e-5 * largest, rtol=1e-5, msg=name)


def test_equal_views_that_agree_have_the_entropy_of_the_target() -> None:
    targets = torch.randn(3, 1, 7).softmax(-1).expand(3, 2, 7)
    student = targets.log().repeat(1, 2, 1) * 0.1
    entropy = -(targets * targets.log()).sum(-1).mean()
    torch.testing.assert_close(view_loss(student, targets, temperature=0.1), entropy)


def test_a_view_without_masks_counts_nothing() -> None:
    student, targets, none = torch.randn(3, 5, 7), torch.randn(3, 5, 7).softmax(-1), torch.zeros(3, 5, dtype=torch.bool)
    assert patch_loss(student, targets, none, temperature=0.1) == 0
    one = none.clone()
    one[1, :2] = True
    alone = patch_loss(student[1:2, :2], targets[1:2, :2], one[1:2, :2], temperature=0.1)
    torch.testing.assert_close(patch_loss(student, targets, one, temperature=0.1), alone / 3)


# --------------------------------------------------------------------------------------------------------------------
# Head, schedules, centre, teacher


def test_head_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    head = DinoHead(48, DinoConfig(prototypes=300, hidden_dim=64, bottleneck_dim=32))
    assert [tuple(p.shape) for p in head.parameters()] == [(64, 48), (64,), (64, 64), (64,), (32, 64), (32,), (300, 32)]
    assert all(0.017 < p.std() < 0.023 for p in head.parameters() if p.ndim > 1)
    assert all(not p.any() for p in head.parameters() if p.ndim == 1)
    x = torch.randn(9, 48)
    outputs = head(x)
    assert outputs.abs().max() <= 1 + 1e-6, "cosines"
    with torch.no_grad():
        head.last_layer.weight.mul_(3)
    torch.testing.assert_close(head(x), outputs, msg="the norm of a prototype counts nothing")


def test_schedules_by_value() -> None:
    cfg = DinoConfig(warmup_temperature=0.04, teacher_temperature=0.07, warmup_share=0.3, teacher_momentum=0.996)
    shares = (0.0, 0.15, 0.3, 1.0)
    assert [teacher_temperature(cfg, share) for share in shares] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert teacher_temperature(replace(cfg, warmup_share=0), 0.0) == 0.07
    assert [teacher_momentum(cfg, share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.996, 0.998, 1.0])
    learner = task(cfg=replace(cfg, prototypes=8, hidden_dim=8, bottleneck_dim=4, freeze_last_epochs=2))
    rates = []
    for epoch, progress in enumerate((0.0, 0.15, 0.5)):
        learner.before_step(step=epoch, epoch=epoch, progress=progress)
        rates.append(learner.head.rate.item())
        assert learner.temperature.item() == pytest.approx(teacher_temperature(cfg, progress))
        assert learner.momentum == teacher_momentum(cfg, progress)
    assert rates == [0, 0, 1]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_center_is_the_mean_of_a_step_however_it_is_parted(parts: list[int]) -> None:
    outputs = torch.randn(sum(parts), 2, 5, generator=torch.Generator().manual_seed(0))
    whole, parted = Center(5, 0.9), Center(5, 0.9)
    for step in (1, 2):
        whole.add(step * outputs, counted=True)
        for part in outputs.split(parts):
            parted.add(step * part, counted=True)
        parted.add(torch.full((1, 2, 5), 1e6), counted=False)  # images that stand in
        for center in (whole, parted):
            center.update()
    mean = outputs.mean((0, 1))
    torch.testing.assert_close(whole.mean, 0.9 * 0.1 * mean + 0.1 * 2 * mean)
    torch.testing.assert_close(parted.mean, whole.mean)
    whole.update()  # a step of all whose images only stood in
    torch.testing.assert_close(parted.mean, whole.mean)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 8))
def test_prototypes_in_use_are_counted_over_a_step_however_it_is_parted(parts: list[int], used: int) -> None:
    images = sum(parts) * used
    targets = torch.eye(8)[torch.arange(images) % used].unsqueeze(1).expand(-1, 2, -1)  # so many prototypes, equally often
    in_use = InUse(8)
    assert in_use.take() is None
    for step in range(LEAST_STEPS):
        assert in_use.take() is None, f"{step} steps are too few"
        for part in targets.split([used * part for part in parts]):
            in_use.add(part, counted=True)
        in_use.add(torch.full((1, 2, 8), 1 / 8), counted=False)  # images that stand in
        in_use.update()
    in_use.update()  # a step of all whose images only stood in
    assert in_use.take() == pytest.approx(used, rel=1e-5)
    assert in_use.take() is None, "it begins anew"


def test_without_centring_one_prototype_takes_all() -> None:
    """Planted collapse: the same output for every image, one prototype ahead. The centre learns it, and takes it away."""
    outputs = torch.zeros(8, 2, 16)
    outputs[..., 3] = 0.5
    entropies = []
    for momentum in (0.9, 1.0):
        center = Center(16, momentum)
        for _ in range(60):
            center.add(outputs, counted=True)
            center.update()
        targets = center.targets(outputs, torch.tensor(0.04))
        entropies.append(float(torch.special.entr(targets).sum(-1).mean()))
    assert entropies[0] == pytest.approx(math.log(16), rel=1e-2)
    assert entropies[1] < 1e-3


def test_teacher_is_the_students_running_mean() -> None:
    learner = task(apart=False)
    assert all(a.equal(b) for a, b in zip(learner.teacher.parameters(), learner.model.parameters(), strict=True))
    before = {name: value.clone() for name, value in learner.teacher.state_dict().items()}
    with torch.no_grad():
        for weight in (*learner.model.parameters(), *learner.head.parameters()):
            weight.add_(torch.randn_like(weight))
    learner.momentum = 0.75
    learner.after_step(0)
    student = learner.model.state_dict()
    for name, value in learner.teacher.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * student[name])
    assert not any(p.requires_grad for p in (*learner.teacher.parameters(), *learner.teacher_head.parameters()))
    assert learner.product() is learner.teacher
    assert set(learner.companions()) == {"head", "center", "in_use", "teacher", "teacher_head"}
    assert learner.prototypes_in_use() is None, "there was no batch"
    assert learner.teacher.card is learner.model.card or learner.teacher.card == learner.model.card


def test_teacher_drops_nothing_and_follows_batch_norms() -> None:
    convolutional = create_model(
        "Ti+/16", img_size=16, embed_dim=24, depth=2, num_heads=3, num_classes=0, drop_path_rate=0.5, proj_drop_rate=0.5
    )
    learner = task(convolutional, apart=False)
    learner.train()
    assert learner.model.training
    assert not any(module.training for module in learner.teacher.modules())
    learner(batch(learner))
    learner.after_step(0)
    means = [name for name, _ in learner.model.named_buffers() if name.endswith("running_mean")]
    assert means
    for name in means:
        assert learner.teacher.get_buffer(name).equal(learner.model.get_buffer(name))
        assert learner.teacher.get_buffer(name).any()


def test_prototypes_learn_after_the_first_epoch() -> None:
    learner = task()
    gradients = []
    for epoch in (0, 1):
        learner.before_step(step=epoch, epoch=epoch, progress=0.0)
        learner(batch(learner))["loss"].backward()
        gradients.append([weight.grad.abs().sum().item() for weight in learner.head.parameters()])  # type: ignore[union-attr]
        learner.zero_grad()
    assert gradients[0][-1] == 0 < gradients[1][-1]
    assert gradients[0][:-1] == gradients[1][:-1]


def test_scores_are_the_teachers() -> None:
    learner, cpu = task(), torch.device("cpu")
    split = FixedSplit(raw(list(range(30))).images[:, :, :16, :16], labels=torch.full((30,), -1), names=["x"] * 30)
    own, teacher, student = (learner.evaluate(split, model=one, device=cpu) for one in (None, learner.teacher, learner.model))
    assert own == teacher != student


# --------------------------------------------------------------------------------------------------------------------
# Masks and backbones


def test_half_of_the_views_are_masked_within_the_shares() -> None:
    learner = task(cfg=replace(IBOT, ibot_mask_ratio=(0.2, 0.6)))
    masks = learner.draw_masks(raw(list(range(200))), epoch=0, grid=(4, 4))
    counts = masks.sum(-1)
    assert masks.shape == (200, 2, 16)
    assert set(counts.unique().tolist()) <= {0, *range(3, 11)}
    assert 0.4 < (counts > 0).float().mean() < 0.6
    assert learner.draw_masks(raw([7]), epoch=0, grid=(4, 4))[0].equal(masks[7]), "keyed by image"
    assert not learner.draw_masks(raw([7]), epoch=1, grid=(4, 4))[0].equal(masks[7])
    part = batch(learner).part(1, 2)
    assert part.view_masks is not None
    assert part.view_masks.shape == (2, 2, 16)


def test_gradients_reach_the_mask_token() -> None:
    learner = task(cfg=IBOT)
    learner(batch(learner))["loss"].backward()
    assert learner.masked is not None
    assert learner.masked.mask_token.grad is not None
    assert learner.masked.mask_token.grad.any()
    assert "masked" in learner.companions()


def test_swin_learns_by_it_as_well_and_without_masks() -> None:
    learner = task(swin(1, 1))
    losses = learner(batch(learner))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert learner.model.get_parameter("patch_embed.proj.weight").grad.any()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"each of the 8x8 patches, and Swin has 16; .* dino.ibot_weight 0$"):
        task(swin(1, 1), cfg=IBOT)
    assert task(swin(2), cfg=IBOT).masked is not None, "one stage keeps the patches"


def settings(**model: object) -> Settings:
    return layers.build([{"model": {"img_size": 32, "num_classes": 0} | model, "train": {"task": "dino"}}])


def test_what_can_not_be_learned_is_refused_before_images_are_read() -> None:
    plain, masks = settings(name="Ti/16"), DinoConfig(ibot_weight=1.0)
    dropping = replace(plain, model=replace(plain.model, patch_drop_rate=0.6))  # type: ignore[call-arg]
    averaged, resized = (
        replace(plain, train=replace(plain.train, **over)) for over in ({"ema_decay": 0.9}, {"patch_sizes": (8, 16)})
    )
    for cfg, refused in (
        (plain, ""),
        (replace(plain, dino=masks), ""),
        (settings(name="swin_t", depths=[1, 1], num_heads=[1, 2], window_size=2), ""),
        (replace(dropping, dino=masks), "^dino.ibot_weight needs a token for each of the 2x2 patches, and ViT has 2; "),
        (replace(settings(name="Ti+/16"), dino=masks), '^stem "conv" looks beyond each patch'),
        (averaged, "^train.ema_decay 0.9 is of the student, .* use train.ema_decay 0$"),
        (resized, "leave train.patch_sizes out$"),
    ):
        with pytest.raises(ValueError, match=refused) if refused else nullcontext():
            TASKS["dino"].check(cfg, meta_model(cfg.model))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prototypes", 0),
        ("student_temperature", 0.0),
        ("center_momentum", 1.1),
        ("freeze_last_epochs", -1),
        ("ibot_mask_ratio", (0.5, 0.1)),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"dino.*{field}"):
        DinoConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dino-small", "dino-photos", "dino"])
def test_recipes_build(name: str) -> None:
    facts = {"dino-small": {"img_size": 28, "in_channels": 1}, "dino": {"img_size": 224}}.get(name, {})
    cfg = layers.build([{"model": {"num_classes": 0} | facts}, layers.read_recipe(name)])
    assert cfg.train.task == "dino"
    TASKS["dino"].check(cfg, meta_model(cfg.model))
    if name == "dino":  # the published arguments of ViT-S/16
        assert cfg.optim.lr == 4 * 5e-4
        assert (cfg.dino.prototypes, cfg.dino.teacher_temperature, cfg.views.local_crops) == (65536, 0.07, 10)
        assert (cfg.optim.warmup, cfg.dino.warmup_share) == (10 / 800, 30 / 800)
