"""Masked autoencoding: the published loss and gradients, masks by image and epoch, any shape, scores, pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.data.augment import normalise
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.batches import Part
from vitrail.data.draws import Draws
from vitrail.data.memory import FixedSplit, whole_boxes
from vitrail.evaluate import embedding
from vitrail.evaluate.evaluate import Among
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.knn import knn
from vitrail.models import ViT
from vitrail.models.backbone import Backbone, Features, View
from vitrail.settings import AugmentConfig, OptimConfig, Pair, Preprocessing
from vitrail.settings.mae import MaeConfig
from vitrail.tasks.mae import Mae, from_patches, hidden_patches, masked_loss, patch_statistics, reconstruct, to_patches
from vitrail.train import checkpoint
from vitrail.train.optim import Optimizers, build_optimizers, companion_table
from vitrail.train.step import Step

SMALL = MaeConfig(decoder_dim=16, decoder_depth=2, decoder_heads=2)
STILL = AugmentConfig(crop="none", flip=0.0)


def preprocessing(size: Pair = (16, 16), channels: int = 3) -> Preprocessing:
    return Preprocessing(img_size=size, in_channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)


def task(
    *,
    size: Pair = (16, 16),
    channels: int = 3,
    cfg: MaeConfig = SMALL,
    seed: int = 0,
    known: FixedSplit | None = None,
    **fields,
) -> Mae:
    torch.manual_seed(seed)
    shape = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0, "pos_embed": "sincos2d"}
    model = ViT(**shape | {"img_size": size, "in_channels": channels} | fields)
    return Mae(model, preprocessing=preprocessing(size, channels), cfg=cfg, augment=STILL, seed=seed, known=known)


def raw(indexes: list[int], *, size: Pair = (16, 16), channels: int = 3) -> RawBatch:
    """Each image is a function of its index."""
    images = [
        torch.randint(0, 256, (channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)) for i in indexes
    ]
    sizes = torch.tensor([size]).expand(len(indexes), 2)
    return RawBatch(torch.stack(images), sizes, whole_boxes(sizes), torch.full((len(indexes),), -1), torch.tensor(indexes))


# --------------------------------------------------------------------------------------------------------------------
# Parity

RENAMES = [
    (r"^vit\.(encoder\.layer|layers)\.", "model.blocks."),
    (r"^decoder\.decoder_layers\.", "decoder.blocks."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.0."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.1."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "model.patch_embed.proj."),
    (r"^vit\.embeddings\.position_embeddings$", "model.pos_embed"),
    (r"^vit\.embeddings\.", "model."),
    (r"^vit\.layernorm\.", "model.norm."),
    (r"^decoder\.decoder_", "decoder."),
]


def renamed(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names as ours; query, key and value become one tensor."""
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        for pattern, new in RENAMES:
            name = re.sub(pattern, new, name)
        ours[name] = value
    for name in [name for name in ours if ".attn.0." in name]:
        parts = [ours.pop(name.replace(".attn.0.", f".attn.{k}.")) for k in range(3)]
        ours[name.replace(".attn.0.", ".attn.qkv.")] = torch.cat(parts)
    return ours


def published_positions(grid: int, width: int) -> Tensor:
    """The table of the published code (util/pos_embed.py): a zero row for the class token, then "w goes first"."""
    columns, rows = (part.reshape(-1) for part in np.meshgrid(np.arange(grid), np.arange(grid)))
    omega = 1 / 10000 ** (np.arange(width // 4) / (width / 4))
    halves = [np.concatenate([np.sin(np.outer(at, omega)), np.cos(np.outer(at, omega))], axis=1) for at in (columns, rows)]
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), np.concatenate(halves, axis=1)]))[None]


@pytest.mark.parametrize("norm_pixels", [True, False])
@pytest.mark.parametrize("ratio", [0.75, 0.5])
def test_same_loss_and_gradients_as_transformers(norm_pixels: bool, ratio: float) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=16,
            patch_size=4,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=96,
            layer_norm_eps=1e-6,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
            mask_ratio=ratio,
            norm_pix_loss=norm_pixels,
        )
    ).double()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        # fresh models of some versions have zeros here
        reference.vit.embeddings.position_embeddings.copy_(published_positions(4, 24))
        reference.decoder.decoder_pos_embed.copy_(published_positions(4, 16))
    ours = task(cfg=replace(SMALL, mask_ratio=ratio, norm_pixels=norm_pixels)).double()
    state = renamed(reference.state_dict())
    positions = state.pop("decoder.pos_embed")
    torch.testing.assert_close(state["model.pos_embed"].float(), ours.model.pos_embed.float())
    torch.testing.assert_close(positions[0, 1:].float(), ours.decoder.positions((4, 4), torch.device("cpu")))
    assert not positions[0, 0].any()
    ours.load_state_dict(state, strict=True)
    ours.decoder._positions[(4, 4), torch.device("cpu")] = positions[0, 1:]  # float64, as theirs here

    images, noise = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.rand(3, 16)
    theirs = reference(images, noise=noise)
    visible = noise.argsort(dim=1)[:, : int(16 * (1 - ratio))].sort(dim=1).values
    assert torch.equal(hidden_patches(visible, 16), theirs.mask.bool())
    batch = ours.batch(raw([0, 1, 2]), epoch=0, img_size=(16, 16))
    predicted = ours.predict(images, visible)
    torch.testing.assert_close(predicted, theirs.logits, rtol=1e-5, atol=1e-8)
    loss = ours(replace(batch, images=images, visible=visible))["loss"]
    torch.testing.assert_close(loss.double(), theirs.loss, rtol=1e-5, atol=0)

    theirs.loss.backward()
    loss.backward()
    expected = renamed({name: p.grad for name, p in reference.named_parameters() if p.grad is not None})
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert expected.keys() == found.keys()
    assert len(found) == len(list(ours.parameters()))
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-12, name


def test_the_loss_is_the_formula() -> None:
    ours = task(size=(8, 12), channels=2)
    batch = ours.batch(raw([3, 5], size=(8, 12), channels=2), epoch=1, img_size=(8, 12))
    with torch.no_grad():
        predicted = ours.predict(batch.images, batch.visible).numpy()
        loss = ours(batch)["loss"].item()
    errors = []
    for image, rows, visible in zip(batch.images.numpy(), predicted, batch.visible.tolist(), strict=True):
        for place in set(range(6)) - set(visible):
            top, left = 4 * (place // 3), 4 * (place % 3)
            pixels = image[:, top : top + 4, left : left + 4].transpose(1, 2, 0).reshape(-1).astype(np.float64)
            target = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
            errors.append(((rows[place] - target) ** 2).mean())
    assert loss == pytest.approx(np.mean(errors), rel=1e-5)


def test_only_hidden_patches_count() -> None:
    targets, hidden = torch.randn(2, 5, 3), torch.tensor([[True, False, False, True, True]] * 2)
    predicted = targets.clone()
    predicted[~hidden] += 10
    assert masked_loss(predicted, targets, hidden).item() == 0
    predicted[:, 0] += 1
    assert masked_loss(predicted, targets, hidden).item() == pytest.approx(1 / 3)


# --------------------------------------------------------------------------------------------------------------------
# Masks


def test_draws_depend_on_seed_epoch_and_image_alone() -> None:
    ours = replace_augment(task(seed=3), AugmentConfig())
    alone = ours.batch(raw([7]), epoch=2, img_size=(16, 16))
    among = ours.batch(raw([1, 7, 4]), epoch=2, img_size=(16, 16))
    assert torch.equal(alone.visible[0], among.visible[1])
    assert torch.equal(alone.images[0], among.images[1])
    assert not torch.equal(among.visible[0], among.visible[1])
    later = ours.batch(raw([1, 7, 4]), epoch=3, img_size=(16, 16))
    assert not torch.equal(among.visible, later.visible)
    other = replace_augment(task(seed=4), AugmentConfig()).batch(raw([1, 7, 4]), epoch=2, img_size=(16, 16))
    assert not torch.equal(among.visible, other.visible)


def replace_augment(ours: Mae, cfg: AugmentConfig) -> Mae:
    ours.augment = cfg
    return ours


@settings(max_examples=40)
@given(grid=st.tuples(st.integers(1, 15), st.integers(1, 15)), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_the_share_of_hidden_patches_is_exact(grid: Pair, ratio: float, seed: int) -> None:
    patches = grid[0] * grid[1]
    ours = task(cfg=replace(SMALL, mask_ratio=ratio), depth=0)
    draws = Draws(seed=seed, epoch=0, indexes=torch.arange(3))
    if patches < 2:
        with pytest.raises(ValueError, match=r"^MAE needs images of at least 2 patches; use a smaller patch or larger images$"):
            ours.draw_visible(draws, grid)
        return
    visible = ours.draw_visible(draws, grid)
    assert visible.shape == (3, min(max(1, int(patches * (1 - ratio))), patches - 1))
    assert visible.min() >= 0
    assert visible.max() < patches
    assert (visible.diff(dim=1) > 0).all()
    assert (hidden_patches(visible, patches).sum(dim=1) == patches - visible.shape[1]).all()


@pytest.mark.parametrize("masking", ["block", "grid"])
def test_other_masks_hide_as_many(masking: str) -> None:
    ours = task(size=(32, 32), cfg=replace(SMALL, masking=masking))
    batch = ours.batch(raw([0, 1, 2], size=(32, 32)), epoch=0, img_size=(32, 32))
    assert batch.visible.shape == (3, 16)
    seen = (~hidden_patches(batch.visible, 64)).unflatten(1, (8, 8))
    cells = seen.unflatten(1, (4, 2)).unflatten(3, (4, 2)).sum(dim=(2, 4))
    assert bool((cells == 1).all()) == (masking == "grid")
    ours(batch)["loss"].backward()


def test_every_patch_is_hidden_as_often() -> None:
    ours = task(depth=0)
    visible = ours.draw_visible(Draws(seed=0, epoch=0, indexes=torch.arange(8000)), (4, 4))
    share = hidden_patches(visible, 16).float().mean(dim=0)
    assert (share - 0.75).abs().max() < 5 * math.sqrt(0.75 * 0.25 / 8000)


# --------------------------------------------------------------------------------------------------------------------
# Any shape


@settings(max_examples=40)
@given(
    grid=st.tuples(st.integers(1, 4), st.integers(2, 4)),
    patch=st.tuples(st.integers(1, 4), st.integers(2, 4)),
    channels=st.integers(1, 5),
)
def test_patches_and_back(grid: Pair, patch: Pair, channels: int) -> None:
    images = torch.randn(2, channels, grid[0] * patch[0], grid[1] * patch[1])
    patches = to_patches(images, patch)
    assert patches.shape == (2, grid[0] * grid[1], patch[0] * patch[1] * channels)
    assert torch.equal(from_patches(patches, patch=patch, grid=grid), images)
    down, across = patch
    assert torch.equal(patches[:, 1].view(2, down, across, channels)[:, :, :, 0], images[:, 0, :down, across : 2 * across])


@settings(max_examples=25)
@given(
    size=st.sampled_from([(8, 8), (8, 24), (24, 8)]),
    patch=st.sampled_from([4, (2, 4), (4, 8), 8]),
    channels=st.sampled_from([1, 2, 3, 5]),
    fields=st.sampled_from(
        [
            {},
            {"class_token": False, "pool": "avg"},
            {"reg_tokens": 3},
            {"dist_token": True, "no_embed_class": True},
            {"pool": "map", "pos_embed": "none"},
            {"pos_embed": "learn", "mlp": "swiglu", "num_classes": 4},
        ]
    ),
)
def test_any_image_patch_and_backbone(size: Pair, patch: int | Pair, channels: int, fields: dict[str, object]) -> None:
    if size == (8, 8) and patch == 8:
        size = (16, 8)
    ours = task(size=size, channels=channels, **{"patch_size": patch} | fields).train()
    ours(ours.batch(raw([0, 1], size=size, channels=channels), epoch=0, img_size=size))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.decoder.parameters())
    assert ours.model.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_larger_image_has_more_patches() -> None:
    ours = task()
    batch = ours.batch(raw([0, 1]), epoch=0, img_size=(24, 16))
    assert batch.images.shape == (2, 3, 24, 16)
    assert batch.visible.shape == (2, 6)
    assert ours(batch)["loss"].isfinite()


def test_mixed_precision_and_recomputing() -> None:
    ours = task().train()
    batch = ours.batch(raw([0, 1]), epoch=0, img_size=(16, 16))
    plain = ours(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        low = ours(batch)["loss"]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, plain, rtol=0.02, atol=0)
    low.backward()
    ours.model.checkpointing = True
    assert torch.equal(ours(batch)["loss"], plain)


def test_parts_of_a_batch_have_their_masks() -> None:
    ours = task()
    batch = ours.batch(raw([0, 1, 2, 3]), epoch=0, img_size=(16, 16))
    halves = [ours(batch.part(index, 2))["loss"] for index in range(2)]
    torch.testing.assert_close(sum(halves) / 2, ours(batch)["loss"])


def test_the_encoder_never_computes_hidden_patches() -> None:
    ours = task(reg_tokens=2)
    lengths = []
    for block in ours.model.blocks:
        block.register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    batch = ours.batch(raw([0, 1]), epoch=0, img_size=(16, 16))
    loss = ours(batch)["loss"]
    assert lengths == [3 + 4] * 2
    garbage = from_patches(
        torch.where(hidden_patches(batch.visible, 16)[:, :, None], 1e3, to_patches(batch.images, (4, 4))),
        patch=(4, 4),
        grid=(4, 4),
    )
    with torch.no_grad():
        assert torch.equal(ours.predict(garbage, batch.visible), ours.predict(batch.images, batch.visible))
    assert loss.isfinite()


class Pyramid(Backbone):
    """A backbone without tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def features(self, images: Tensor, view: View = View()) -> Features:
        return Features(pooled=self.conv(images).mean(dim=(2, 3)))


class Blind(ViT):
    """A backbone that sees everything whatever it is told."""

    def features(self, images: Tensor, view: View = View()) -> Features:
        return super().features(images)


def test_a_backbone_that_can_t_is_refused() -> None:
    for model in (Pyramid(), Blind(img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=3)):
        with pytest.raises(ValueError, match=rf"^MAE needs a backbone that .*; {type(model).__name__} does not, a ViT does$"):
            Mae(model, preprocessing=preprocessing(), cfg=SMALL, augment=STILL, seed=0)


def test_errors_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"^MAE predicts the pixels of patches of 4x4, not of 8; leave train.patch_sizes out$"):
        task().batch(raw([0]), epoch=0, img_size=(16, 16), patch_size=8)
    with pytest.raises(ValueError, match=r"^mae.norm_pixels true needs patches of at least 2 numbers; use a larger patch, or "):
        task(size=(4, 4), channels=1, patch_size=1)
    ours = task(patch_drop_rate=0.5).train()
    with pytest.raises(ValueError, match=r"^patch_drop_rate 0.5 hides patches, and so does `visible`; use rate 0$"):
        ours(ours.batch(raw([0]), epoch=0, img_size=(16, 16)))


# --------------------------------------------------------------------------------------------------------------------
# Training


def waves(count: int, seed: int = 0) -> FixedSplit:
    """Smooth images: a class is the direction of a wave, whose phase and length are drawn."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] / 16
    labels = np.arange(count) % 2
    phases, lengths = rng.uniform(0, 6.28, count), rng.uniform(4, 9, count)
    along = np.where(labels[:, None, None] == 0, y, x)
    pixels = 127 + 110 * np.sin(along * lengths[:, None, None] + phases[:, None, None])
    images = torch.from_numpy(pixels.round().astype(np.uint8))[:, None].expand(-1, 3, -1, -1).contiguous()
    return FixedSplit(images, labels=torch.from_numpy(labels), names=[str(i) for i in range(count)])


@pytest.mark.parametrize("norm_pixels", [True, False])
@pytest.mark.slow
def test_training_beats_the_mean(norm_pixels: bool) -> None:
    """A patch's own mean has a loss of the patch's variance: 15/16 or so of normalised pixels; the others' mean has more."""
    split = waves(64)
    ours = task(cfg=replace(SMALL, decoder_dim=32, norm_pixels=norm_pixels)).train()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    read = split.read(torch.arange(64))[0]
    first = batch = ours.batch(read, epoch=0, img_size=(16, 16))
    with torch.no_grad():
        before = ours(first)["loss"].item()
    for epoch in range(1, 301):
        batch = ours.batch(read, epoch=epoch, img_size=(16, 16))
        loss = ours(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = ours(first)["loss"].item()
    patches = to_patches(first.images, (4, 4))
    if norm_pixels:
        mean, std = patch_statistics(patches)
        patches = (patches - mean) / std
    hidden = hidden_patches(first.visible, 16)
    by_mean = masked_loss(patches[~hidden].mean().expand_as(patches), patches, hidden).item()
    assert after < before
    assert after < 0.75 * by_mean


# --------------------------------------------------------------------------------------------------------------------
# Scores


def test_scores_of_labelled_images() -> None:
    ours = task(known=waves(40, seed=1))
    scores = ours.evaluate(waves(20), device=torch.device("cpu"))
    assert scores.count == 20
    assert scores.headline.name == "knn_accuracy"
    with torch.no_grad():
        seen, known = (
            LabelledEmbeddings(ours.model.features(normalise(split.images, preprocessing())).pooled, split.labels)
            for split in (waves(20), waves(40, seed=1))
        )
    assert scores.knn == knn(known, seen)
    assert scores.headline.value == scores.knn.value
    assert (scores.unit, scores.direction) == ("share of images", "higher")
    assert scores.figures().keys() == {"knn_accuracy", "effective_rank", "uniformity"}
    assert scores.to_dict()["headline"]["name"] == "knn_accuracy"
    assert 1 <= scores.effective_rank <= 20


def test_scores_without_labels_are_the_effective_rank() -> None:
    ours, split = task(), waves(30)
    split.labels = torch.full_like(split.labels, -1)
    scores = ours.evaluate(split, device=torch.device("cpu"))
    assert scores.knn is None
    assert scores.headline.name == "effective_rank"
    assert scores.headline.interval[0] <= scores.headline.value <= scores.headline.interval[1]
    assert scores.unit == "dimensions"
    split.labels = torch.zeros_like(split.labels)  # one class: nothing to tell apart
    assert ours.evaluate(split, device=torch.device("cpu")) == scores


def test_without_known_images_those_of_the_split_are_neighbours() -> None:
    ours, split = task(), waves(20)
    scores = ours.evaluate(split, device=torch.device("cpu"))
    assert scores.knn is not None
    assert scores.knn.count == 20
    other = task(seed=5)
    assert ours.evaluate(split, model=other.model, device=torch.device("cpu")) == other.evaluate(
        split, device=torch.device("cpu")
    )


def test_processes_that_share_a_split_have_the_same_scores() -> None:
    ours, split, parts = task(), waves(21), []
    for index in range(2):
        among = Among(part=Part(index, 2), gather=lambda own: (parts.append(own), [own])[1])
        ours.evaluate(split, device=torch.device("cpu"), among=among)
    shared = ours.evaluate(split, device=torch.device("cpu"), among=Among(part=Part(0, 2), gather=lambda own: parts))
    alone = ours.evaluate(split, device=torch.device("cpu"))
    assert (shared.count, shared.knn) == (alone.count, alone.knn)
    assert shared.effective_rank == pytest.approx(alone.effective_rank, rel=1e-5)


def test_known_images_are_capped_and_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "KNOWN_IMAGES", 10)
    one, two = task(known=waves(40)), task(known=waves(40), seed=1)
    assert one.known is not None
    assert two.known is not None
    assert len(one.known) == 10
    assert one.known.names != two.known.names
    assert task(known=waves(40)).known.names == one.known.names
    batch, _ = one.known.read(torch.tensor([2, 0]))
    assert torch.equal(batch.indexes, torch.tensor([2, 0]))
    whole, _ = waves(40).read(torch.tensor([int(one.known.names[2]), int(one.known.names[0])]))
    assert torch.equal(batch.images, whole.images)
    assert torch.equal(batch.labels, whole.labels)
    assert one.evaluate(waves(20), device=torch.device("cpu")).count == 20


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^there are no images to evaluate; "):
        task().evaluate(waves(0), device=torch.device("cpu"))


def test_the_product_is_the_backbone_and_the_decoder_its_companion() -> None:
    ours = task()
    assert ours.product() is ours.model
    assert list(ours.companions()) == ["decoder"]


# --------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "L")])
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_pictures_keep_visible_patches(channels: int, mode: str, norm_pixels: bool) -> None:
    ours = task(size=(8, 12), channels=channels, cfg=replace(SMALL, norm_pixels=norm_pixels))
    batch = ours.batch(raw([0, 1], size=(8, 12), channels=channels), epoch=0, img_size=(8, 12))
    sheet = reconstruct(ours, batch.images, batch.visible)
    assert sheet.mode == mode
    pixels, factor, gap = np.asarray(sheet), 96 // 12, 4
    assert pixels.shape[:2] == (gap + 2 * (8 * factor + gap), gap + 3 * (12 * factor + gap))

    def tile(row: int, column: int) -> np.ndarray:
        top, left = gap + row * (8 * factor + gap), gap + column * (12 * factor + gap)
        return pixels[top : top + 8 * factor : factor, left : left + 12 * factor : factor]

    original = raw([0, 1], size=(8, 12), channels=channels).images.numpy()
    for row in range(2):
        shown = original[row].transpose(1, 2, 0) if channels == 3 else original[row].mean(0)
        assert np.abs(tile(row, 0) - shown).max() <= 1
        visible = np.zeros((2, 3), dtype=bool)
        visible.flat[batch.visible[row].tolist()] = True
        visible = visible.repeat(4, 0).repeat(4, 1)
        assert np.array_equal(tile(row, 1)[visible], tile(row, 0)[visible])
        assert (tile(row, 1)[~visible] == 128).all()
        assert np.array_equal(tile(row, 2)[visible], tile(row, 0)[visible])


def test_a_perfect_prediction_is_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = task()
    images = ours.batch(raw([0, 1]), epoch=0, img_size=(16, 16)).images
    patches = to_patches(images, (4, 4))
    mean, std = patch_statistics(patches)
    monkeypatch.setattr(ours, "predict", lambda images, visible: (patches - mean) / std)
    pixels = np.asarray(reconstruct(ours, images)).astype(int)
    assert np.abs(pixels[:, 4 : 4 + 96] - pixels[:, -100:-4]).max() <= 1


# --------------------------------------------------------------------------------------------------------------------
# Through the step and the checkpoints that every task takes


def test_the_loop_s_step_trains_the_decoder_too(tmp_path: Path) -> None:
    """And a checkpoint brings it back, to the bit: what comes after is the same."""

    def begun() -> tuple[Mae, Optimizers, Step]:
        learned = task(pool="avg", class_token=False)
        optimizers = build_optimizers(
            learned.model, OptimConfig(lr=0.1, weight_decay=0.05), batch_size=1024, companions=learned.companions()
        )
        return learned, optimizers, Step(learned, optimizers, clip_norm=1.0)

    def data(learned: Mae, epoch: int) -> Batch:
        return learned.batch(raw([0, 1, 2, 3]), epoch=epoch, img_size=(16, 16))

    learned, optimizers, step = begun()
    before = {name: value.clone() for name, value in learned.state_dict().items()}
    losses = [step(data(learned, epoch))["loss"].item() for epoch in range(20)]
    assert losses[-1] < losses[0]
    moved = {name for name, value in learned.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if name.startswith("decoder.")} <= moved
    kept: dict[str, Any] = {"state": {}, "keep": 1, "companions": learned.companions()}
    path = checkpoint.save(tmp_path, step=20, model=learned.model, ema=None, optimizers=optimizers, **kept)
    assert {file.name for file in path.glob("*.safetensors")} == {
        "model.safetensors",
        "companions.safetensors",
        "optimizer.safetensors",
    }
    expected = [step(data(learned, epoch))["loss"].item() for epoch in range(20, 23)]
    again, optimizers, step = begun()
    _, state, _ = checkpoint.find_newest(tmp_path)
    with pytest.raises(ValueError, match=r"has companions\.decoder.* where the run's model has None"):
        checkpoint.restore(path, state, model=again.model, ema=None, optimizers=optimizers)
    checkpoint.restore(path, state, model=again.model, ema=None, optimizers=optimizers, companions=again.companions())
    assert [step(data(again, epoch))["loss"].item() for epoch in range(20, 23)] == expected


def test_what_learns_beside_a_model_is_in_the_table_once() -> None:
    learned = task()
    for name in ("adamw", "muon", "sgd"):
        rows = companion_table(learned.companions(), OptimConfig(name=name, weight_decay=0.3))
        assert {row.name for row in rows} == {name for name, _ in learned.named_parameters() if name.startswith("decoder.")}
        for row in rows:
            assert row.optimizer == ("sgd" if name == "sgd" else "adamw")
            assert row.weight_decay == (0.3 if len(row.shape) > 1 and not row.name.endswith("mask_token") else 0.0)
