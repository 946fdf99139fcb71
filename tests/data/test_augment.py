from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from timm.data.mixup import rand_bbox
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from vitrail.data.augment import augment, crop_boxes, erase_, mix, normalise
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.draws import Draws
from vitrail.settings import AugmentConfig, Preprocessing, RandAugment

FAR = 1e-4
EVERYTHING = AugmentConfig(
    rand_augment=RandAugment(),
    three_augment=True,
    color_jitter=0.3,
    erase_prob=0.5,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)
PLAIN = AugmentConfig(crop="none", flip=0.0)


def draws(count: int, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws(seed=seed, epoch=epoch, indexes=torch.arange(count))


def preprocessing(height: int, width: int, channels: int = 3) -> Preprocessing:
    return Preprocessing(
        img_size=(height, width),
        in_channels=channels,
        mean=(0.4, 0.5, 0.3, 0.2)[:channels],
        std=(0.2, 0.3, 0.25, 0.1)[:channels],
    )


def raw_batch(
    count: int, height: int, width: int, channels: int = 3, *, cfg: AugmentConfig = PLAIN, seed: int = 0, epoch: int = 0
) -> RawBatch:
    generator = torch.Generator().manual_seed(height * 1000 + width * 10 + channels)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([height, width]).repeat(count, 1)
    indexes = torch.arange(count) + 17
    boxes = crop_boxes(sizes, Draws(seed=seed, epoch=epoch, indexes=indexes), cfg)
    return RawBatch(images=images, sizes=sizes, boxes=boxes, labels=torch.arange(count) % 5, indexes=indexes)


def run(
    raw: RawBatch, cfg: AugmentConfig, out: tuple[int, int], *, seed: int = 0, epoch: int = 0, smooth: float = 0.0
) -> Batch:
    pre = preprocessing(*out, raw.images.shape[1])
    return augment(raw, cfg=cfg, preprocessing=pre, num_classes=5, seed=seed, epoch=epoch, label_smoothing=smooth)


# ---- crop boxes


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (90, 50), (20, 400), (400, 20)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.7)])
def test_resized_crops_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    canvas, count = torch.empty(1, height, width), 3000
    crop = v2.RandomResizedCrop(8, scale=scale)
    theirs = [crop.make_params([canvas]) for _ in range(count)]
    sizes = torch.tensor([height, width]).repeat(count, 1)
    ours = crop_boxes(sizes, draws(count), AugmentConfig(crop_scale=scale)).long()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= sizes).all()
    for column, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(ours[:, column].numpy(), [one[name] for one in theirs]).pvalue > FAR
    areas = [one["height"] * one["width"] for one in theirs]
    assert stats.ks_2samp((ours[:, 2] * ours[:, 3]).numpy(), areas).pvalue > FAR


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_boxes_of_any_sizes_lie_within_their_image(sides: list[tuple[int, int]]) -> None:
    sizes = torch.tensor(sides)
    boxes = crop_boxes(sizes, draws(len(sides)), AugmentConfig()).long()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


def test_crop_with_padding_shifts_evenly() -> None:
    sizes = torch.tensor([28, 30]).repeat(9000, 1)
    boxes = crop_boxes(sizes, draws(9000), AugmentConfig(crop="pad", crop_pad=4)).long()
    assert torch.equal(boxes[:, 2:], sizes)
    for column in range(2):
        assert stats.chisquare(torch.bincount(boxes[:, column] + 4, minlength=9).numpy()).pvalue > FAR
    assert stats.chi2_contingency(torch.histogramdd(boxes[:, :2].double(), [9, 9]).hist.numpy()).pvalue > FAR


def test_no_crop_is_the_whole_image() -> None:
    boxes = crop_boxes(torch.tensor([[3, 4], [9, 2]]), draws(2), PLAIN)
    assert boxes.tolist() == [[0, 0, 3, 4], [0, 0, 9, 2]]


# ---- one operation at a time


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise(channels: int) -> None:
    images, pre = raw_batch(3, 7, 5, channels).images, preprocessing(7, 5, channels)
    theirs = TF.normalize(TF.to_dtype(images, torch.float32, scale=True), list(pre.mean), list(pre.std))
    torch.testing.assert_close(normalise(images, pre), theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normalise(images.float(), pre), theirs, atol=1e-5, rtol=1e-5)


def test_nothing_on_is_the_normalised_image() -> None:
    raw = raw_batch(4, 9, 12)
    batch = run(raw, PLAIN, (9, 12))
    assert torch.equal(batch.images, normalise(raw.images, preprocessing(9, 12)))
    assert torch.equal(batch.targets, torch.eye(5)[raw.labels])
    assert torch.equal(batch.labels, raw.labels)
    assert torch.equal(batch.indexes, raw.indexes)


def test_crop_with_padding_and_flip() -> None:
    cfg = AugmentConfig(crop="pad", crop_pad=3, flip=0.5)
    raw = raw_batch(40, 10, 13, cfg=cfg)
    batch = run(raw, cfg, (10, 13))
    flips = Draws(seed=0, epoch=0, indexes=raw.indexes).uniform("flip")[:, 0] < 0.5
    assert 5 < int(flips.sum()) < 35
    for row, (top, left, height, width) in enumerate(raw.boxes.int().tolist()):
        expected = TF.crop(raw.images[row], top, left, height, width)
        expected = TF.hflip(expected) if flips[row] else expected
        assert torch.equal(batch.images[row], normalise(expected[None], preprocessing(10, 13))[0])


def test_rand_augment_fills_with_the_mean_colour() -> None:
    """A picture of the mean colour stays that under all geometry, so it is zero after normalisation."""
    raw = raw_batch(64, 20, 20)
    flat = torch.tensor([102, 127.5, 76.5]).round().to(torch.uint8).view(1, 3, 1, 1).expand(64, 3, 20, 20).contiguous()
    sample = dataclasses.replace(raw, images=flat)
    cfg = dataclasses.replace(PLAIN, rand_augment=RandAugment(n=1, mstd=0.0, m=10.0))
    images = run(sample, cfg, (20, 20)).images
    kinds = Draws(seed=0, epoch=0, indexes=raw.indexes).integers("rand_augment", high=15)[:, 0]
    assert images[kinds >= 10].abs().max() < 0.02


def test_colours_after_geometry_start_from_whole_levels() -> None:
    cfg = dataclasses.replace(PLAIN, color_jitter=1e-9)
    raw = raw_batch(6, 12, 12)
    images = run(raw, cfg, (17, 9)).images
    pre = preprocessing(17, 9)
    levels = (images * torch.tensor(pre.std).view(3, 1, 1) + torch.tensor(pre.mean).view(3, 1, 1)) * 255
    torch.testing.assert_close(levels, levels.round(), atol=2e-3, rtol=0)


# ---- erasing


def erased(count: int, height: int, width: int, prob: float = 1.0, channels: int = 3) -> tuple[Tensor, Tensor]:
    """The images after erasing (ones before), and which pixels changed."""
    images = torch.ones(count, channels, height, width)
    erase_(images, draws(count), prob=prob)
    return images, (images != 1).any(1)


def test_erased_pixels_form_a_rectangle_of_normal_noise() -> None:
    images, holes = erased(600, 32, 48)
    rows, columns = holes.any(2), holes.any(1)
    assert torch.equal(holes, rows[:, :, None] & columns[:, None, :])
    share, ratio = holes.float().mean((1, 2)), columns.sum(1) / rows.sum(1)
    assert 0.015 < share.min() < 0.06
    assert 0.25 < share.max() < 0.35
    assert ratio.min() > 0.25
    assert ratio.max() < 4
    noise = images[holes[:, None].expand_as(images)]
    assert stats.kstest(noise[:20_000].double().numpy(), "norm").pvalue > FAR
    for row in range(3):  # as torchvision's erase with that rectangle and that noise
        top, left = int(rows[row].int().argmax()), int(columns[row].int().argmax())
        tall, wide = int(rows[row].sum()), int(columns[row].sum())
        patch = images[row, :, top : top + tall, left : left + wide]
        assert torch.equal(images[row], TF.erase(torch.ones(3, 32, 48), top, left, tall, wide, patch))


def test_erasing_happens_as_often_as_asked() -> None:
    _, holes = erased(4000, 16, 16, prob=0.25)
    assert stats.binomtest(int(holes.any((1, 2)).sum()), 4000, 0.25).pvalue > FAR
    assert not erased(50, 16, 16, prob=0.0)[1].any()
    assert not erased(50, 1, 1)[1].any()  # no rectangle is smaller than the image


def test_noise_is_the_samples_own() -> None:
    images, holes = erased(40, 20, 20)
    alone = torch.ones(1, 3, 20, 20)
    erase_(alone, Draws(seed=0, epoch=0, indexes=torch.tensor([13])), prob=1.0)
    assert torch.equal(alone[0], images[13])
    overlap = (holes[0] & holes[1:]).flatten(1).sum(1)
    other = int(overlap.argmax()) + 1
    both = holes[0] & holes[other]
    assert both.sum() > 3
    assert (images[0][:, both] != images[other][:, both]).all()


# ---- mixing


@pytest.mark.parametrize("count", [1, 2, 7])
def test_mixup_is_its_formula(count: int) -> None:
    images, targets = torch.rand(count, 3, 6, 8), torch.eye(5)[torch.arange(count) % 5]
    cfg = dataclasses.replace(PLAIN, mixup_alpha=0.8)
    ours, mixed = mix(images, targets, draws(count), cfg)
    share = draws(count).beta("mixup", 0.8)
    for row in range(count):
        torch.testing.assert_close(ours[row], share[row] * images[row] + (1 - share[row]) * images[row - 1])
        torch.testing.assert_close(mixed[row], share[row] * targets[row] + (1 - share[row]) * targets[row - 1])


@pytest.mark.parametrize("count", [1, 2, 33])
@pytest.mark.parametrize("size", [(8, 8), (7, 12), (1, 1)])
def test_cutmix_pastes_a_box_and_counts_it(count: int, size: tuple[int, int]) -> None:
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 2, *size).clone()
    targets = torch.eye(count)
    ours, mixed = mix(images, targets, draws(count), dataclasses.replace(PLAIN, cutmix_alpha=1.0))
    for row in range(count):
        own = ours[row, 0] == row
        assert (ours[row][:, ~own] == (row - 1) % count).all()
        hole = ~own
        assert torch.equal(hole, hole.any(1)[:, None] & hole.any(0))
        assert mixed[row, row] == pytest.approx(float(own.float().mean()), abs=1e-5)
        assert mixed[row].sum() == pytest.approx(1, abs=1e-5)


def test_cutmix_boxes_are_timms() -> None:
    """Same side for the same share, and the same positions on average: the box is cut off at the edge, not moved."""
    count, side = 4000, 20
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 1, side, side).clone()
    targets = torch.eye(2)[torch.arange(count) % 2]
    ours, _ = mix(images, targets, draws(count), dataclasses.replace(PLAIN, cutmix_alpha=1.0))
    areas = (ours != images).float().sum((1, 2, 3)).numpy()
    theirs = []
    for share in draws(count, seed=1).beta("x", 1.0).tolist():
        top, bottom, left, right = rand_bbox((1, side, side), share)
        theirs.append((bottom - top) * (right - left))
    assert stats.ks_2samp(areas, theirs).pvalue > FAR


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("switch", [0.0, 0.3, 1.0])
def test_probabilities_of_mixing_and_switching(prob: float, switch: float) -> None:
    count = 3000
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 1, 12, 12).clone()
    cfg = dataclasses.replace(PLAIN, mixup_alpha=1.0, cutmix_alpha=1.0, mixup_prob=prob, switch_prob=switch)
    ours, targets = mix(images, torch.eye(2)[torch.arange(count) % 2], draws(count), cfg)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    flat = ours.flatten(1)
    blended = flat.eq(flat[:, :1]).all(1) & (flat[:, 0] != images[:, 0, 0, 0])
    blended[0] = False
    touched = (targets.amax(1) < 1) | blended
    expected = prob * (1 - switch)
    if expected in (0, 1):
        assert float(blended[1:].float().mean()) == pytest.approx(expected, abs=0.08)  # a box may cover all
    else:
        assert float(blended.float().mean()) == pytest.approx(expected, abs=0.06)
    assert float(touched.float().mean()) <= prob + 0.05


def test_teacher_targets_are_mixed_like_the_labels() -> None:
    """Teacher targets that equal the labels stay equal; each image gets those of its index in the split."""
    cfg = dataclasses.replace(PLAIN, mixup_alpha=0.8, cutmix_alpha=1.0)
    raw, pre = raw_batch(33, 12, 12), preprocessing(12, 12, 3)
    teacher_targets = torch.zeros(60, 5, dtype=torch.float16)
    teacher_targets[raw.indexes] = torch.eye(5, dtype=torch.float16)[raw.labels]
    batch = augment(raw, cfg=cfg, preprocessing=pre, num_classes=5, seed=0, epoch=0, teacher_targets=teacher_targets)
    assert batch.teacher_targets is not None
    torch.testing.assert_close(batch.teacher_targets, batch.targets)
    assert (batch.teacher_targets.amax(1) < 1).any()
    torch.testing.assert_close(batch.part(1, 2).teacher_targets, batch.teacher_targets[16:])
    without = augment(raw, cfg=cfg, preprocessing=pre, num_classes=5, seed=0, epoch=0)
    torch.testing.assert_close(without.images, batch.images, atol=0, rtol=0)
    torch.testing.assert_close(without.targets, batch.targets, atol=1e-6, rtol=0)


def test_mixing_is_off_by_default() -> None:
    images, targets = torch.rand(3, 1, 4, 4), torch.eye(3)
    ours, mixed = mix(images, targets, draws(3), AugmentConfig())
    assert ours is images
    assert mixed is targets


@pytest.mark.parametrize("cfg", [PLAIN, dataclasses.replace(PLAIN, mixup_alpha=0.5, cutmix_alpha=1.0)])
def test_label_smoothing(cfg: AugmentConfig) -> None:
    raw = raw_batch(9, 8, 8)
    plain, smooth = run(raw, cfg, (8, 8)).targets, run(raw, cfg, (8, 8), smooth=0.1).targets
    torch.testing.assert_close(smooth, 0.9 * plain + 0.1 / 5)
    torch.testing.assert_close(smooth.sum(1), torch.ones(9))


# ---- everything at once


@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3, 4]),
    canvas=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    out=st.tuples(st.integers(4, 33), st.integers(4, 33)),
    crop=st.sampled_from(["resized", "pad", "none"]),
)
@settings(max_examples=40, deadline=None)
def test_any_shape(count: int, channels: int, canvas: tuple[int, int], out: tuple[int, int], crop: str) -> None:
    cfg = dataclasses.replace(EVERYTHING, crop=crop)
    batch = run(raw_batch(count, *canvas, channels, cfg=cfg), cfg, out, smooth=0.1)
    assert batch.images.shape == (count, channels, *out)
    assert batch.images.dtype == torch.float32
    assert batch.images.isfinite().all()
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(count))
    assert (batch.targets > 0).all()


def test_a_batch_can_be_made_again_and_changes_with_seed_and_epoch() -> None:
    raw = raw_batch(12, 24, 24)
    first = run(raw, EVERYTHING, (24, 24), seed=3, epoch=4)
    torch.manual_seed(99)
    again = run(raw, EVERYTHING, (24, 24), seed=3, epoch=4)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.targets, again.targets)
    for seed, epoch in ((3, 5), (4, 4), (4, 3)):
        assert not torch.allclose(first.images, run(raw, EVERYTHING, (24, 24), seed=seed, epoch=epoch).images)


@pytest.mark.parametrize("crop", ["resized", "pad"])
def test_a_sample_comes_out_the_same_in_any_company(crop: str) -> None:
    cfg = dataclasses.replace(EVERYTHING, crop=crop, mixup_alpha=0.0, cutmix_alpha=0.0)
    raw = raw_batch(16, 24, 24, cfg=cfg)
    together = run(raw, cfg, (24, 24)).images
    chosen = torch.tensor([11, 2, 7])
    fewer = RawBatch(*(getattr(raw, f.name)[chosen] for f in dataclasses.fields(raw) if getattr(raw, f.name) is not None))
    torch.testing.assert_close(run(fewer, cfg, (24, 24)).images, together[chosen], atol=1e-4, rtol=0)


def test_every_sample_has_draws_of_its_own() -> None:
    """The same picture sixteen times comes out in sixteen ways."""
    raw = raw_batch(16, 24, 24, cfg=EVERYTHING)
    same = dataclasses.replace(raw, images=raw.images[:1].expand(16, -1, -1, -1).contiguous())
    images = run(same, EVERYTHING, (24, 24)).images.flatten(1)
    distances = torch.cdist(images, images) + torch.eye(16)
    assert distances.min() > 0.5


def test_the_input_is_left_as_it_was() -> None:
    raw = raw_batch(5, 24, 24)
    before = raw.images.clone()
    run(raw, EVERYTHING, (24, 24))
    assert torch.equal(raw.images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cfg", [AugmentConfig(crop="pad"), EVERYTHING])
def test_a_gpu_makes_the_same_batch(cfg: AugmentConfig) -> None:
    """But for single pixels that stand between two whole levels before the colours."""
    raw = raw_batch(16, 24, 24, cfg=cfg)
    here, there = run(raw, cfg, (24, 24)), run(raw.to("cuda"), cfg, (24, 24))
    assert there.images.is_cuda
    assert (here.images - there.images.cpu()).abs().gt(1e-3).float().mean() < 0.01
    torch.testing.assert_close(here.targets, there.targets.cpu(), atol=1e-5, rtol=1e-5)
