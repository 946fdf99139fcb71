"""Token merging computes what the paper's algorithm does, written down step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from vitrail.deploy.packed import copy_as, pack
from vitrail.models import ViT, create_model
from vitrail.models.backbone import View
from vitrail.models.merging import MergedViT, MergeTokens
from vitrail.models.vit import Block

TINY: dict[str, Any] = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}


def tiny(**fields: Any) -> ViT:
    """A small model whose every part matters to the logits."""
    torch.manual_seed(0)
    model = ViT(**{"img_size": 20} | TINY | fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(count: int = 3, side: int = 20, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def merged_by_hand(x: Tensor, sizes: Tensor, keys: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Steps 1 to 5 of section 3 for the tokens of one image, with loops: x (N, D), sizes (N), keys (N, d)."""
    count = len(x)
    first, second = list(range(0, count, 2)), list(range(1, count, 2))
    edges = []
    for a in first:
        if a >= prefix:
            pairs = [(float(torch.cosine_similarity(keys[a], keys[b], dim=0)), b) for b in second if b >= prefix]
            edges += [(*max(pairs, key=lambda pair: pair[0]), a)] if pairs else []
    chosen = sorted(edges, key=lambda edge: -edge[0])[: min(r, (count - prefix) // 2)]
    sums, weights = {i: x[i] * sizes[i] for i in range(count)}, {i: sizes[i] for i in range(count)}
    for _, b, a in chosen:
        sums[b], weights[b] = sums[b] + sums[a], weights[b] + weights[a]
    gone = {a for _, _, a in chosen}
    left = [a for a in first if a >= prefix and a not in gone] + [b for b in second if b >= prefix]
    order = [*range(prefix), *left]
    return torch.stack([sums[i] / weights[i] for i in order]), torch.stack([weights[i] for i in order])


def logits_by_hand(model: ViT, image: Tensor, r: int) -> Tensor:
    """Logits of one image, by the paper's equations alone."""
    x = model.embed(image[None], pad=False, sizes=None)[0][0]  # (N, D)
    sizes = torch.ones(len(x))
    for block in model.blocks:
        assert isinstance(block, Block)
        q, k, v = (part[0] for part in block.queries_keys_values(x[None]))  # (h, N, d)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + sizes.log()).softmax(-1)
        x = x + block.ls1(block.attn.proj((weights @ v).transpose(0, 1).flatten(1))[None])[0]
        x, sizes = merged_by_hand(x, sizes, k.mean(0), r, model.prefix_tokens)
        x = x + block.ls2(block.mlp(block.norm2(x)[None]))[0]
    x, prefix, cfg = model.norm(x), model.prefix_tokens, model.config
    mean = (x * sizes[:, None])[prefix:].sum(0) / sizes[prefix:].sum()
    pooled = {"cls": x[0], "avg": mean, "cls+avg": torch.cat([x[0], mean])}[cfg.pool]
    logits = model.apply_heads(model.fc_norm(pooled)[None], x[None])
    return torch.stack([each[0] for each in logits]).mean(0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "avg", "fc_norm": True},
        {"pool": "cls+avg", "init_values": 0.1, "qk_norm": True},
        {"dist_token": True},
        {"reg_tokens": 2, "mlp": "swiglu"},
        {"class_token": False, "pool": "avg", "stem": "conv", "img_size": 16},
    ],
    ids=str,
)
@pytest.mark.parametrize("r", [1, 4, 100])
def test_logits_are_those_of_the_paper(fields: dict[str, Any], r: int) -> None:
    model = tiny(**fields)
    batch = images(side=model.config.img_size if isinstance(model.config.img_size, int) else 20)
    with torch.no_grad():
        merged = MergedViT(model, r)(batch)
        torch.testing.assert_close(
            merged, torch.stack([logits_by_hand(model, image, r) for image in batch]), atol=1e-5, rtol=1e-5
        )
        assert not torch.allclose(merged, model(batch), atol=1e-3)


@given(count=st.integers(1, 12), prefix=st.integers(0, 4), r=st.integers(0, 9), seed=st.integers(0, 99))
@hypothesis_settings(max_examples=60)
def test_merging_is_that_of_the_paper_for_any_number_of_tokens(count: int, prefix: int, r: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = count + prefix
    x, keys = (torch.randn(2, *shape, generator=generator) for shape in ((tokens, 5), (2, tokens, 4)))
    sizes = torch.randint(1, 5, (2, tokens), generator=generator).float()
    out, out_sizes = MergeTokens(r, prefix)(x, sizes, keys)
    for row in range(2):
        expected, expected_sizes = merged_by_hand(x[row], sizes[row], keys[row].mean(0), r, prefix)
        if r and count > 1:
            torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(out_sizes[row], expected_sizes)
    assert torch.equal(out_sizes.sum(1), sizes.sum(1))  # every patch is in one of the tokens
    assert out.shape[1] == tokens - min(r, count // 2)


@pytest.mark.parametrize("fields", [{}, {"pool": "map", "class_token": False}, {"dist_token": True}], ids=str)
def test_no_merged_tokens_are_the_model_itself(fields: dict[str, Any]) -> None:
    model = tiny(**fields)
    merged = MergedViT(model, 0)
    with torch.no_grad():
        pairs = [(merged(images()), model(images())), (merged.embedding(images()), model.features(images()).pooled)]
        pairs += zip(merged.head_logits(images()), model.head_logits(images()), strict=True)
        for ours, wanted in pairs:  # the model may take another kernel of attention
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_equal_patches_are_merged_without_loss() -> None:
    """A grey image without positions has one kind of patch: its mean, proportional attention and pooling stay what they are."""
    model = tiny(pos_embed="none", pool="map", class_token=False)
    grey = torch.full((2, 3, 20, 20), 0.3)
    with torch.no_grad():
        torch.testing.assert_close(MergedViT(model, 5)(grey), model(grey), atol=1e-5, rtol=1e-5)


def test_packed_and_in_bf16_it_is_the_same_model() -> None:
    merged = MergedViT(tiny(), 3)
    packed, half = copy_as(merged, torch.float32), copy_as(merged, torch.bfloat16)
    pack(packed)
    with torch.no_grad():
        torch.testing.assert_close(packed(images()), merged(images()), atol=1e-4, rtol=1e-4)
        assert half(images().bfloat16()).isfinite().all()


def test_it_is_a_backbone_with_the_models_card_stages_and_weights() -> None:
    model = tiny()
    model.classes = ("a", "b", "c", "d", "e")
    merged = MergedViT(model, 2)
    assert merged.classes == model.classes
    assert merged.stored() is model
    assert merged.side_unit == (4, 4)
    owners = [sum(stage.owns(name) for stage in merged.stages()) for name, _ in merged.named_parameters()]
    assert set(owners) == {1}
    assert len(merged.blocks_in_order()) == 3
    assert next(merged.head_modules()) is model.head
    merged.reset_head(7)
    assert merged.config.num_classes == 7
    assert merged(images()).shape == (3, 7)
    with pytest.raises(ValueError, match="looks at whole images only"):
        merged.features(images(), View(pad=True))
    with pytest.raises(ValueError, match="patches of its own, not of 8"):
        merged.head_logits(images(), patch_size=8)


@pytest.mark.parametrize("name", ["swin_t", "cait_xxs24", "beit_base_patch16_224", "timm:resnet18"])
def test_models_without_plain_blocks_are_refused_in_one_line(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    with pytest.raises(
        ValueError, match=r"^\w+ has no plain blocks, whose tokens can be merged; use a ViT, or leave merging out$"
    ):
        MergedViT(model, 2)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 merged tokens a block must be at least 0"):
        MergedViT(tiny(), -1)


@pytest.mark.slow
def test_it_can_be_exported_with_any_number_of_images() -> None:
    merged = MergedViT(tiny(), 3).eval()
    program = torch.export.export(merged, (images(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        for count in (1, 5):
            torch.testing.assert_close(program.module()(images(count)), merged(images(count)), atol=1e-5, rtol=1e-5)
