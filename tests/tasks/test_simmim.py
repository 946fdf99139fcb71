"""SimMIM: loss and gradients beside the paper's written straight, on ViT, Swin and CaiT; masks, pictures, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.batch import RawBatch
from vitrail.data.memory import FixedSplit, whole_boxes
from vitrail.models import create_model, meta_model
from vitrail.models.backbone import Backbone
from vitrail.settings import AugmentConfig, Pair, Preprocessing, SimmimConfig, layers
from vitrail.tasks import TASKS
from vitrail.tasks.masks import mask_at
from vitrail.tasks.simmim import Simmim

STILL = AugmentConfig(crop="none", flip=0.0)
MODELS = {
    "vit": ("Ti/4", {"embed_dim": 24, "depth": 2, "num_heads": 3}),
    "swin": ("swin_t", {"patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}),
    "cait": ("cait_xxs24", {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}),
}


def build(name: str, **over: object) -> Backbone:
    torch.manual_seed(0)
    model, fields = MODELS[name]
    return create_model(model, num_classes=0, **{"img_size": 16, **fields, **over})


def task(backbone: Backbone, *, size: Pair = (16, 16), channels: int = 3, **fields: object) -> Simmim:
    images = Preprocessing(img_size=size, in_channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    torch.manual_seed(1)
    cfg = SimmimConfig(**{"mask_size": 4, **fields})
    return Simmim(backbone, preprocessing=images, cfg=cfg, augment=STILL, seed=0)


def raw(indexes: list[int], *, size: Pair = (16, 16), channels: int = 3) -> RawBatch:
    pixels = torch.randint(0, 256, (50, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([size]).expand(len(indexes), 2)
    return RawBatch(pixels[indexes], sizes, whole_boxes(sizes), torch.full((len(indexes),), -1), torch.tensor(indexes))


def straight_tokens(name: str, model: Backbone, images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """The last map (B, D, gh, gw) of patch embeddings x (1 - w) + token w, with w the mask, as in the paper's code."""
    w = mask[:, :, None].float()
    if name == "swin":
        x, grid = model.patch_embed(images)
        x = x * (1 - w) + token * w
        for layer in model.layers:
            if layer.downsample is not None:
                x, grid = layer.downsample(x, grid), (grid[0] // 2, grid[1] // 2)
            for block in layer.blocks:
                x = block(x, grid)
        return model.norm(x).transpose(1, 2).unflatten(2, grid)
    x = model.patch_embed(images) * (1 - w) + token * w
    if name == "cait":
        x = x + model.pos_embed
        for block in model.blocks:
            x = block(x)
        return model.norm(x).transpose(1, 2).unflatten(2, (4, 4))
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    for block in model.blocks:
        x = block(x)
    return model.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_papers(name: str) -> None:
    ours = task(build(name))
    batch = ours.batch(raw([1, 4, 7]), epoch=0, img_size=(16, 16))
    assert batch.masked is not None
    loss = ours(batch)["loss"]
    loss.backward()
    found = {key: p.grad.clone() for key, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()

    patch = 2 if name == "swin" else 4
    side, cell = 16 // patch, 4
    mask = mask_at(batch.masked, side * side)
    last = straight_tokens(name, ours.model, batch.images, mask, ours.head.mask_token)
    x_rec = F.pixel_shuffle(F.conv2d(last, ours.head.proj.weight, ours.head.proj.bias), cell)
    pixels = mask.view(3, side, side).repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1).float()
    expected = (F.l1_loss(batch.images, x_rec, reduction="none") * pixels).sum() / (pixels.sum() + 1e-5) / 3
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    straight = {key: p.grad for key, p in ours.named_parameters() if p.grad is not None}
    assert straight.keys() <= found.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, straight.get(key, torch.zeros_like(gradient)), atol=1e-5, rtol=1e-5, msg=key)


def test_masked_pixels_are_not_seen() -> None:
    ours = task(build("vit")).eval()
    batch = ours.batch(raw([0, 1]), epoch=0, img_size=(16, 16))
    changed = torch.where(ours.masked_pixels(batch.images, batch.masked), 9.0, batch.images)
    with torch.no_grad():
        assert ours.predict(changed, batch.masked).equal(ours.predict(batch.images, batch.masked))
        assert not ours.predict(changed, batch.masked).equal(ours.predict(changed, batch.masked.flip(0)))


def test_parts_of_a_batch_have_their_masks() -> None:
    ours = task(build("vit"))
    batch = ours.batch(raw([0, 1, 2, 3]), epoch=0, img_size=(16, 16))
    halves = [ours(batch.part(index, 2))["loss"] for index in range(2)]
    torch.testing.assert_close(sum(halves) / 2, ours(batch)["loss"])
    alone = ours.batch(raw([2]), epoch=0, img_size=(16, 16))
    assert alone.masked[0].equal(batch.masked[2])


@pytest.mark.parametrize(("size", "channels", "patch"), [((8, 16), 1, (2, 4)), ((12, 8), 5, 4)])
def test_any_shape_and_a_larger_image(size: Pair, channels: int, patch: int | Pair) -> None:
    ours = task(build("vit", img_size=size, in_channels=channels, patch_size=patch), size=size, channels=channels)
    for times in (1, 2):
        larger = (size[0] * times, size[1])
        batch = ours.batch(raw([0, 1], size=larger, channels=channels), epoch=0, img_size=larger)
        assert ours.predict(batch.images, batch.masked).shape == batch.images.shape
        ours(batch)["loss"].backward()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit", {}),
        ("vit", {"pool": "avg", "class_token": False}),
        ("vit", {"pool": "map"}),
        ("vit", {"pool": "avg", "fc_norm": True, "reg_tokens": 2}),
        ("swin", {}),
        ("cait", {}),
    ],
)
def test_parameters_without_gradient_are_known(name: str, fields: dict[str, object]) -> None:
    ours = task(build(name, **fields))
    ours(ours.batch(raw([0, 1]), epoch=0, img_size=(16, 16)))["loss"].backward()
    left_out = [key for key, parameter in ours.named_parameters() if parameter.grad is None]
    assert ours.leaves_parameters_out() == bool(left_out), left_out
    assert all(key.startswith("model.") for key in left_out)


def test_training_beats_the_mean() -> None:
    """Images of one grey each: the mean of the visible pixels is the answer, which an untrained layer does not know."""
    grey = torch.linspace(20, 235, 32).round().byte()[:, None, None, None].expand(-1, 3, 16, 16)
    read = FixedSplit(grey, labels=torch.zeros(32, dtype=torch.long), names=[str(i) for i in range(32)]).read(torch.arange(32))[
        0
    ]
    ours = task(build("vit")).train()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    losses = []
    for epoch in range(30):
        losses.append(ours(ours.batch(read, epoch=epoch, img_size=(16, 16)))["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < 0.6 * 0.85  # the mean of all images is 0.85 from each


def test_pictures_keep_what_is_seen() -> None:
    ours = task(build("vit"))
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    split = FixedSplit(pixels, labels=torch.zeros(3, dtype=torch.long), names=list("abc"))
    sheet = np.asarray(ours.picture(split, device=torch.device("cpu")))
    factor, gap = 6, 4
    assert sheet.shape == (gap + 3 * (16 * factor + gap), gap + 3 * (16 * factor + gap), 3)
    whole, masked, rebuilt = (
        sheet[gap : gap + 96 : factor, left : left + 96 : factor] for left in (gap, 2 * gap + 96, 3 * gap + 192)
    )
    hidden = (masked == 128).all(axis=2)
    assert 0.55 < hidden.mean() < 0.7
    assert np.abs(whole.astype(int) - pixels[0].permute(1, 2, 0).numpy()).max() <= 1
    assert (rebuilt[~hidden] == whole[~hidden]).all()
    assert (rebuilt[hidden] != whole[hidden]).any()


def test_errors_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"cells of 4x4 px do not divide images of 18x16; use 16x16, or a smaller patch$"):
        task(build("swin", img_size=(18, 16)), size=(18, 16))
    with pytest.raises(ValueError, match=r"^SimMIM needs a backbone that takes a mask token: .*; use a ViT or a Swin$"):
        task(create_model("cvt_13", img_size=16, num_classes=0))
    with pytest.raises(ValueError, match=r"beyond each patch"):
        task(create_model("Ti+/16", img_size=32, num_classes=0), size=(32, 32))
    with pytest.raises(ValueError, match=r"at least 2 patches"):
        task(build("vit", patch_size=16))
    with pytest.raises(ValueError, match=r"leave train.patch_sizes out$"):
        task(build("vit")).batch(raw([0]), epoch=0, img_size=(16, 16), patch_size=8)
    swin = layers.build([{"model": {"name": "swin_t", "img_size": 64, "num_classes": 0}, "train": {"start_size": 32}}])
    with pytest.raises(ValueError, match=r"^train.start_size gives sizes in steps of 1 px, and SimMIM needs steps of 32 "):
        TASKS["simmim"].check(swin, meta_model(swin.model))
    with pytest.raises(ValueError, match=r"leave train.patch_sizes out$"):
        TASKS["simmim"].check(replace(swin, train=replace(swin.train, patch_sizes=(4,))), meta_model(swin.model))
    small = layers.build([{"model": {"name": "swin_t", "img_size": 28, "num_classes": 0}}])
    with pytest.raises(ValueError, match=r"whose cells of 32x32 px do not divide images of 28x28; use 32x32"):
        TASKS["simmim"].check(small, meta_model(small.model))
