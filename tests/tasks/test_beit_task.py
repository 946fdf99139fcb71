"""BEiT's pre-training: loss and gradients written straight, tokens of unmasked images, the codebook, refusals, recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vitrail.data.batch import RawBatch
from vitrail.data.memory import FixedSplit, whole_boxes
from vitrail.data.sources import open_source
from vitrail.models import create_model, meta_model
from vitrail.models.backbone import Backbone
from vitrail.settings import AugmentConfig, BeitPretrainConfig, Preprocessing, layers
from vitrail.tasks import TASKS
from vitrail.tasks.beit import BeitPretraining
from vitrail.tasks.codebook import FeatureVectors
from vitrail.tasks.masks import mask_at
from vitrail.train.notes import find_unused
from vitrail.train.plan import data_fields
from vitrail.weights import save_model

CPU = torch.device("cpu")
IMAGES = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
STILL = AugmentConfig(crop="none", flip=0.0)


def build(name: str = "Ti/4", **over: object) -> Backbone:
    torch.manual_seed(0)
    return create_model(name, num_classes=0, **{**SHAPE, **over})


def split(count: int = 20) -> FixedSplit:
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return FixedSplit(images, labels=torch.full((count,), -1), names=[str(i) for i in range(count)])


def task(backbone: Backbone | None = None, *, codes: int = 6, fit: bool = True, **over: Any) -> BeitPretraining:
    model = backbone or build()
    torch.manual_seed(1)
    options: dict[str, Any] = {"preprocessing": IMAGES, "cfg": BeitPretrainConfig(), "augment": STILL, "seed": 0, "device": CPU}
    learner = BeitPretraining(model, codes=codes, **options | over)
    if fit:
        learner.prepare(split())
    return learner


def raw(indexes: list[int]) -> RawBatch:
    sizes = torch.tensor([[16, 16]]).expand(len(indexes), 2)
    pixels = split().read(torch.tensor(indexes))[0].images
    return RawBatch(pixels, sizes, whole_boxes(sizes), torch.full((len(indexes),), -1), torch.tensor(indexes))


def test_loss_and_gradients_are_the_papers() -> None:
    ours = task()
    batch = ours.batch(raw([1, 4, 7]), epoch=0, img_size=(16, 16))
    assert batch.masked is not None
    losses = ours(batch)
    losses["loss"].backward()
    found = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()

    model, terms, hits = ours.model, [], []
    mask = mask_at(batch.masked, 16)
    assert mask.sum(dim=1).tolist() == [6, 6, 6]  # ⌊0.4 * 16⌋
    x = model.patch_embed(batch.images)
    x = torch.where(mask[:, :, None], ours.head.mask_token, x)
    x = torch.cat([model.cls_token.expand(3, -1, -1), x], dim=1) + model.pos_embed
    for block in model.blocks:
        x = block(x)
    x = model.norm(x)[:, 1:]
    for image in range(3):
        for place in range(16):
            if mask[image, place]:
                top, left = 4 * (place // 4), 4 * (place % 4)
                pixels = batch.images[image, :, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
                vector = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
                token = (ours.codebook.centers - vector).square().sum(dim=1).argmin()
                logits = F.linear(x[image, place], ours.head.proj.weight, ours.head.proj.bias)
                terms.append(-logits.log_softmax(0)[token])
                hits.append(float(logits.argmax() == token))
    expected = torch.stack(terms).mean()
    expected.backward()
    torch.testing.assert_close(losses["loss"], expected, atol=1e-5, rtol=1e-5)
    assert losses["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    straight = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == straight.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, straight[name], atol=1e-5, rtol=1e-5, msg=name)


def test_masks_and_tokens_are_of_seed_epoch_and_image() -> None:
    ours = task()
    among, alone = (ours.batch(raw(rows), epoch=2, img_size=(16, 16)) for rows in ([1, 7, 4], [7]))
    assert alone.masked[0].equal(among.masked[1])
    assert alone.tokens[0].equal(among.tokens[1])
    later = ours.batch(raw([1, 7, 4]), epoch=3, img_size=(16, 16))
    assert not later.masked.equal(among.masked)
    halves = [ours(among.rows(rows))["loss"] for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close((halves[0] + 2 * halves[1]) / 3, ours(among)["loss"])
    larger = ours.batch(raw([1, 7]), epoch=0, img_size=(24, 16))
    assert larger.tokens.shape == (2, 9)
    assert ours(larger)["loss"].isfinite()


def test_the_codebook_is_a_companion_that_no_step_changes() -> None:
    ours = task()
    assert list(ours.companions()) == ["head", "codebook"]
    assert "codebook.centers" in ours.state_dict()
    assert "codebook.centers" not in dict(ours.named_parameters())
    assert ours.usage is not None
    assert ours.usage.used == 6
    assert ours.prepared() == f"100% of 6 tokens are in use on 200 patches, with a perplexity of {ours.usage.perplexity:,.0f}"
    again, other = task(), task(seed=1)
    assert again.codebook.centers.equal(ours.codebook.centers)
    assert not other.codebook.centers.equal(ours.codebook.centers)


def test_a_resumed_run_fits_nothing() -> None:
    ours = task(fit=False)
    assert ours.preparation(20) == "fitting 6 tokens to patches of 20 images"
    assert ours.preparation(20, resumed=True) == ""
    ours.prepare(split(), resumed=True)
    assert not ours.codebook.centers.any()
    assert ours.prepared() == ""
    scored = task(fit=False, neighbours=True)
    assert "k-NN" in scored.preparation(20, resumed=True)
    assert scored.preparation(20) == f"fitting 6 tokens to patches of 20 images; {scored.preparation(20, resumed=True)}"
    scored.prepare(split(), resumed=True)
    assert len(scored.known) == 20


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Ti/4", {}),
        ("Ti/4", {"pool": "map"}),
        ("Ti/4", {"pool": "avg", "fc_norm": True}),
        ("beit_b16", {"relative_bias": "shared", "fc_norm": False}),
        ("beit_b16", {}),
        ("cait_xxs24", {}),
        ("dinov3_vits16", {}),
    ],
)
def test_parameters_without_gradient_are_known(name: str, fields: dict[str, object]) -> None:
    ours = task(build(name, **fields))
    ours(ours.batch(raw([0, 1]), epoch=0, img_size=(16, 16)))["loss"].backward()
    left_out = [key for key, parameter in ours.named_parameters() if parameter.grad is None]
    assert ours.leaves_parameters_out() == bool(left_out), left_out
    assert all(key.startswith("model.") for key in left_out)


def test_training_learns_the_tokens() -> None:
    """Images of stripes: a patch's token is that of its neighbours."""
    stripes = torch.arange(16).div(2, rounding_mode="floor") % 2 * 255
    across, down = stripes.byte().expand(16, 16), stripes.byte()[:, None].expand(16, 16)
    images = torch.stack([across if i % 2 else down for i in range(16)])[:, None].expand(-1, 3, -1, -1).contiguous()
    data = FixedSplit(images, labels=torch.full((16,), -1), names=[str(i) for i in range(16)])
    ours = task(codes=2, fit=False)
    ours.prepare(data)
    read = data.read(torch.arange(16))[0]
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    for epoch in range(40):
        losses = ours(ours.batch(read, epoch=epoch, img_size=(16, 16)))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["loss"] < 0.2
    assert losses["accuracy"] > 0.9


def test_tokens_of_a_run(tmp_path: Path) -> None:
    """The tokenizer is a run of another patch and grey images; it is no part of what is trained or saved."""
    net = create_model("Ti/4", img_size=12, patch_size=6, in_channels=1, embed_dim=24, depth=1, num_heads=3, num_classes=0)
    net.preprocessing = Preprocessing(img_size=(12, 12), in_channels=1, mean=(0.4,), std=(0.3,))
    (tmp_path / "net").mkdir()
    save_model(net, tmp_path / "net", data="here")
    cfg = {"model": {"name": "Ti/4", **SHAPE, "num_classes": 0, "in_channels": 3}, "beit": {"tokenizer": str(tmp_path / "net")}}
    settings = layers.build([cfg, {"beit": {"codebook": 5, "fit_images": 9}, "augment": {"crop": "none"}}])
    learner = TASKS["beit"].build(
        settings, build(), split=split(), preprocessing=IMAGES, classes=(), device=CPU, autocast_dtype=None
    )
    assert isinstance(learner, BeitPretraining)
    assert isinstance(learner._vectors[0], FeatureVectors)
    assert learner.codebook.centers.shape == (5, 24)
    learner.prepare(split())
    assert learner.codebook.centers.any()
    assert set(learner.companions()) == {"head", "codebook"}
    batch = learner.batch(raw([0, 1]), epoch=0, img_size=(16, 16))
    assert batch.tokens.max() < 5
    learner(batch)["loss"].backward()
    few = replace(settings, beit=replace(settings.beit, codebook=8192))
    learner = TASKS["beit"].build(
        few, build(), split=split(), preprocessing=IMAGES, classes=(), device=CPU, autocast_dtype=None
    )
    assert len(learner.codebook.centers) == 9 * 16 // 4
    typed = replace(settings, beit=replace(settings.beit, normalise="none"), train=replace(settings.train, task="beit"))
    assert any('beit.normalise is for beit.tokenizer "pixels"' in line for line in find_unused(typed, build()))


def test_errors_are_one_line() -> None:
    swin = layers.build([{"model": {"name": "swin_t", "img_size": 64, "num_classes": 0}}])
    with pytest.raises(
        ValueError, match=r"16x16 patches that are masked, and Swin ends with 2x2; use a ViT, or --method simmim$"
    ):
        TASKS["beit"].check(swin, meta_model(swin.model))
    plain = layers.build([{"model": {"name": "Ti/16", "img_size": 64, "num_classes": 0}}])
    with pytest.raises(ValueError, match=r"leave train.patch_sizes out$"):
        TASKS["beit"].check(replace(plain, train=replace(plain.train, patch_sizes=(16, 32))), meta_model(plain.model))
    named = replace(plain, beit=replace(plain.beit, tokenizer="B/16"))
    with pytest.raises(
        ValueError, match=r'^beit.tokenizer "B/16" has random weights; give a run or a checkpoint, or "pixels"$'
    ):
        TASKS["beit"].check(named, meta_model(plain.model))
    with pytest.raises(ValueError, match=r"^BEiT needs a backbone that takes a mask token: "):
        task(create_model("cvt_13", img_size=16, num_classes=0))
    with pytest.raises(ValueError, match=r"at least 2 patches"):
        task(build(patch_size=16))


RECIPES = [name for name in layers.recipes() if name.startswith(("simmim", "beit"))]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_build(name: str) -> None:
    task, layer = TASKS[name.partition("-")[0]], layers.read_recipe(name)
    size = {} if name.endswith("small") else {"model": {"img_size": 224}}
    cfg = layers.build([data_fields(open_source("fashion-sample"), task), size, layer])
    assert cfg.train.task == name.partition("-")[0]
    task.check(cfg, meta_model(cfg.model))
    assert {task.recipe, task.small_recipe} <= set(RECIPES)
    if name == "simmim":
        assert (cfg.optim.lr * 2, cfg.optim.clip_norm, cfg.simmim.mask_ratio, cfg.simmim.mask_size) == (8e-4, 5.0, 0.6, 32)
    if name == "beit":
        assert (cfg.optim.lr * 2, cfg.optim.clip_norm, cfg.beit.mask_ratio, cfg.beit.codebook) == (1.5e-3, 3.0, 0.4, 8192)


def test_the_recipe_after_mae_is_the_authors() -> None:
    cfg = layers.build([layers.read_recipe("mae-finetune")])
    assert (cfg.optim.lr, cfg.optim.layer_decay, cfg.augment.mixup_alpha, cfg.augment.cutmix_alpha) == (
        4 * 5e-4,
        0.65,
        0.8,
        1.0,
    )
    assert (cfg.train.batch_size, cfg.train.epochs, cfg.model.drop_path_rate) == (1024, 100, 0.1)
