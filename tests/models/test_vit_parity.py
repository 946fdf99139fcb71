"""The same numbers as timm, torchvision and transformers with the same weights, and as the formulas by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from vitrail.models import ViT, create_model
from vitrail.models.positions import resize_positions, sincos_2d
from vitrail.models.vit import AttentionPool, PatchEmbed, SwiGLU
from vitrail.settings import SIZES, ViTConfig
from vitrail.settings.families import parse_name

DIM, HEADS, DEPTH, PATCH, SIDE, CLASSES = 24, 3, 2, 4, 16, 5
TINY = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": CLASSES}

PARAMETERS = {  # at 224 px and 1000 classes
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "B/16": 86_567_656,
    "L/16": 304_326_632,
    "H/14": 632_045_800,
    "g/14": 1_012_611_432,
}


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter random, those that start as zero or one as well: else a lost bias or norm would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def images(height: int = SIDE, width: int = SIDE, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(2))


def same(ours: Tensor, theirs: Tensor, *, within: float = 1e-5) -> None:
    assert theirs.std() > 0.01, "the reference says nothing"
    torch.testing.assert_close(ours, theirs, atol=within, rtol=within)


def timm_vit(**fields: object) -> nn.Module:
    return randomised(
        timm.models.VisionTransformer(
            img_size=SIDE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=CLASSES, **fields
        )
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"qkv_bias": False}, {"qkv_bias": False}),
        ({"qk_norm": True}, {"qk_norm": True}),
        ({"init_values": 0.3}, {"init_values": 0.3}),
        ({"mlp_ratio": 2.5}, {"mlp_ratio": 2.5}),
        ({"in_channels": 1}, {"in_chans": 1}),
        ({"pool": "avg"}, {"global_pool": "avg", "fc_norm": False}),
        ({"pool": "avg", "class_token": False}, {"global_pool": "avg", "fc_norm": False, "class_token": False}),
        (
            {"drop_rate": 0.5, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5},
            {"drop_rate": 0.5, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5},
        ),
        ({"patch_drop_rate": 0.5}, {"patch_drop_rate": 0.5}),
    ],
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_same_logits_as_timm_with_its_state_dict(ours: dict[str, object], theirs: dict[str, object]) -> None:
    reference = timm_vit(**theirs)
    model = ViT(**TINY | ours).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    x = images(channels=model.config.in_channels)
    with torch.no_grad():
        same(model(x), reference(x))
        same(model.forward_features(x), reference.forward_features(x))


def test_same_logits_as_timm_with_registers_behind_the_class_token() -> None:
    """timm's register models give no position to prefix tokens; ours has a row for the class token: zero says the same."""
    reference = timm_vit(reg_tokens=2, no_embed_class=True)
    state = reference.state_dict()
    state["pos_embed"] = F.pad(state["pos_embed"], (0, 0, 1, 0))
    model = ViT(**TINY, reg_tokens=2).eval()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        same(model(images()), reference(images()))
        same(model.forward_features(images()), reference.forward_features(images()))


def test_same_logits_as_timms_distilled_model() -> None:
    reference = randomised(
        timm.models.deit.VisionTransformerDistilled(
            img_size=SIDE,
            patch_size=PATCH,
            embed_dim=DIM,
            depth=DEPTH,
            num_heads=HEADS,
            num_classes=CLASSES,
            weight_init="skip",
        )
    )
    for unset in (reference.pos_embed, reference.cls_token, reference.dist_token):  # timm leaves these as memory happens to be
        nn.init.normal_(unset, std=0.5)
    model = ViT(**TINY, dist_token=True).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    with torch.no_grad():
        same(model(images()), reference(images()))


def test_tokens_stand_as_class_distillation_registers_patches() -> None:
    model = ViT(**TINY, dist_token=True, reg_tokens=2, pos_embed="none")
    with torch.no_grad():
        for value, token in enumerate((model.cls_token, model.dist_token, model.reg_token)):
            assert token is not None
            token.fill_(float(value))
        x, _ = model.embed(images(), pad=False, sizes=None)
    assert model.prefix_tokens == 4
    assert x[0, :4].mean(dim=1).tolist() == [0.0, 1.0, 2.0, 2.0]
    torch.testing.assert_close(x[:, 4:], model.patch_embed(images()))


def test_same_tokens_as_transformers() -> None:
    config = transformers.ViTConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        image_size=SIDE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )
    reference = randomised(transformers.ViTModel(config, add_pooling_layer=False))
    theirs = reference.state_dict()
    state = {
        "cls_token": theirs["embeddings.cls_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],
        "patch_embed.proj.weight": theirs["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": theirs["layernorm.weight"],
        "norm.bias": theirs["layernorm.bias"],
    }
    for i in range(DEPTH):
        block = {k: v for k, v in theirs.items() if f"layer.{i}." in k or f"layers.{i}." in k}

        def find(*words: str, block: dict[str, Tensor] = block) -> Tensor:
            [found] = [value for key, value in block.items() if all(word in key for word in words)]
            return found

        q = {"q": ("query", "q_proj"), "k": ("key", "k_proj"), "v": ("value", "v_proj")}
        old = any("attention.query" in key for key in block)
        for kind in ("weight", "bias"):
            parts = [find(f".{names[0] if old else names[1]}.", kind) for names in q.values()]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
            for ours, words in {
                "norm1": ("layernorm_before",),
                "norm2": ("layernorm_after",),
                "attn.proj": ("attention.output.dense",) if old else ("o_proj",),
                "mlp.fc1": ("intermediate.dense",) if old else ("fc1",),
                "mlp.fc2": (f"{i}.output.dense",) if old else ("fc2",),
            }.items():
                state[f"blocks.{i}.{ours}.{kind}"] = find(*words, kind)
    model = ViT(**TINY | {"num_classes": 0}).eval()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        same(model.forward_features(images()), reference(images()).last_hidden_state)


def test_same_logits_as_torchvision() -> None:
    reference = randomised(
        torchvision.models.VisionTransformer(
            image_size=SIDE,
            patch_size=PATCH,
            num_layers=DEPTH,
            num_heads=HEADS,
            hidden_dim=DIM,
            mlp_dim=4 * DIM,
            num_classes=CLASSES,
        )
    )
    renames = {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj": "patch_embed.proj",
        "encoder.layers.encoder_layer_": "blocks.",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "encoder.ln": "norm",
        "heads.head": "head",
    }
    state = {}
    for key, value in reference.state_dict().items():
        for theirs, ours in renames.items():
            key = key.replace(theirs, ours)
        state[key] = value
    model = ViT(**TINY).eval()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        same(model(images()), reference(images()))


# --------------------------------------------------------------------------------------------------------------------
# Sizes


def test_every_size_has_its_count() -> None:
    assert [name.split("/")[0] for name in PARAMETERS] == list(SIZES)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_exact_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = ViT(ViTConfig(**parse_name(name)))
    assert sum(p.numel() for p in model.parameters()) == count


# --------------------------------------------------------------------------------------------------------------------
# Parts, against the formula


@settings(max_examples=30, deadline=None)
@given(
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 7),
    pool=st.sampled_from(["cls", "avg", "map"]),
)
def test_rectangular_images_and_patches_of_any_channels(
    patch: tuple[int, int], grid: tuple[int, int], channels: int, pool: str
) -> None:
    size = (patch[0] * grid[0], patch[1] * grid[1])
    model = ViT(**TINY | {"img_size": size, "patch_size": patch, "in_channels": channels, "pool": pool}).eval()
    x = images(*size, channels=channels)
    with torch.no_grad():
        projection = model.patch_embed.proj
        assert isinstance(projection, nn.Conv2d)
        assert projection.bias is not None
        unfolded = F.unfold(x, patch, stride=patch).transpose(1, 2)  # (B, L, C·P·P)
        by_hand = F.linear(unfolded, projection.weight.flatten(1), projection.bias)
        torch.testing.assert_close(model.patch_embed(x), by_hand, atol=1e-5, rtol=1e-5)
        assert model(x).shape == (2, CLASSES)
        assert model.forward_features(x).shape == (2, 1 + grid[0] * grid[1], DIM)


def test_a_rectangular_model_is_timms() -> None:
    fields = {"img_size": (12, 20), "patch_size": (4, 5), "embed_dim": DIM, "depth": 1, "num_heads": HEADS, "num_classes": 3}
    reference = randomised(timm.models.VisionTransformer(**fields))
    model = ViT(**fields).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    with torch.no_grad():
        same(model(images(12, 20)), reference(images(12, 20)))


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("new", [(3, 9), (2, 2), (8, 8), (4, 6)])
def test_positions_are_resized_as_timm_does(new: tuple[int, int], prefix: int) -> None:
    pos = torch.randn(1, prefix + 24, DIM)
    ours = resize_positions(pos, old=(4, 6), new=new, prefix=prefix)
    theirs = resample_abs_pos_embed(pos, list(new), [4, 6], num_prefix_tokens=prefix)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[:, :prefix], pos[:, :prefix])


def test_a_larger_image_gives_timms_logits() -> None:
    reference = timm_vit(dynamic_img_size=True)
    model = ViT(**TINY).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    with torch.no_grad():
        same(model(images(24, 8)), reference(images(24, 8)))


def test_map_pooling_is_timms_with_the_same_weights() -> None:
    reference = randomised(AttentionPoolLatent(DIM, num_heads=HEADS, norm_layer=partial(nn.LayerNorm, eps=1e-6)))
    ours = AttentionPool(ViTConfig(**TINY)).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 7, DIM)
    with torch.no_grad():
        same(ours(x), reference(x))


def test_swiglu_by_hand() -> None:
    mlp = SwiGLU(ViTConfig(**TINY, mlp="swiglu", mlp_ratio=2))
    x = torch.randn(2, 3, DIM)
    a = x @ mlp.fc1.weight[: 2 * DIM].T + mlp.fc1.bias[: 2 * DIM]
    b = x @ mlp.fc1.weight[2 * DIM :].T + mlp.fc1.bias[2 * DIM :]
    by_hand = (a * torch.sigmoid(a) * b) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), by_hand)


def test_sincos_positions_by_the_formula() -> None:
    table = sincos_2d((3, 5), 16)
    assert table.shape == (15, 16)
    row, y, x = 2 * 5 + 3, 2, 3  # the patch in the third row and the fourth column
    omega = 1 / 10000 ** (1 / 4)  # of the second frequency of four
    for place, value in {
        1: math.sin(x * omega),
        5: math.cos(x * omega),
        9: math.sin(y * omega),
        13: math.cos(y * omega),
    }.items():
        assert table[row, place].item() == pytest.approx(value, abs=1e-6)
    assert torch.equal(table[0], torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4))


def test_sincos_model_gives_prefix_tokens_no_position_and_learns_none() -> None:
    model = ViT(**TINY, pos_embed="sincos2d")
    pos = model.get_buffer("pos_embed")
    assert torch.equal(pos[0, 0], torch.zeros(DIM))
    assert torch.equal(pos[0, 1:], sincos_2d((4, 4), DIM))
    assert "pos_embed" not in dict(model.named_parameters())


@pytest.mark.parametrize("patch", [4, 8, 14, 16, 32])
def test_the_convolutional_stem_has_the_grid_of_the_patches(patch: int) -> None:
    fields = {"patch_size": patch, "img_size": (2 * patch, 3 * patch), "embed_dim": DIM, "num_heads": HEADS}
    x = images(2 * patch, 3 * patch)
    plain, conv = PatchEmbed(ViTConfig(**fields)), PatchEmbed(ViTConfig(**fields, stem="conv"))
    assert conv(x).shape == plain(x).shape == (2, 6, DIM)
    assert sum(isinstance(layer, nn.Conv2d) for layer in conv.stem.modules()) == {4: 3, 8: 4, 14: 2, 16: 5, 32: 5}[patch]


def test_conv_stem_keeps_patches_in_their_places() -> None:
    """Light in the last corner moves the last token, and none that is far from it."""
    stem = PatchEmbed(ViTConfig(**TINY, stem="conv")).eval()
    dark = torch.zeros(1, 3, SIDE, SIDE)
    light = dark.clone()
    light[..., -2:, -2:] = 1.0
    with torch.no_grad():
        moved = (stem(light) - stem(dark)).abs().sum(dim=2)[0]
    assert moved[15] > 0
    assert not moved[:8].any()


def test_an_odd_patch_has_no_convolutional_stem() -> None:
    with pytest.raises(ValueError, match=r'^patch_size 7 is odd, and stem "conv" halves the image; use an even patch or stem'):
        ViT(img_size=28, patch_size=7, stem="conv")


@pytest.mark.parametrize("name", ["B/16", "vit_base_patch16_224"])
def test_names_of_one_model(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, depth=1, num_classes=10)
    assert (model.config.embed_dim, model.config.num_heads, model.config.patch_size) == (768, 12, 16)
    assert (model.config.depth, model.config.num_classes, model.config.img_size) == (1, 10, 224)


def test_small_names_and_long_names_with_sizes() -> None:
    assert create_model("Ti/4", img_size=28, depth=1).config.patch_size == 4
    with torch.device("meta"):
        assert create_model("vit_small_patch32_384").config.img_size == 384
        assert create_model("S+/16").config.stem == "conv"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("B16", r'^model "B16" is not a name such as .*did you mean "B/16"\?$'),
        ("b/16", r'^model "b/16": size "b" is none of Ti, S, B, L, H, g; did you mean "B"\?$'),
        ("vit_bass_patch16_224", r'^model "vit_bass_patch16_224": size "bass" is none of'),
        ("B/0", r"the patch must be at least 1 pixel$"),
    ],
)
def test_bad_names_are_one_line(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        create_model(name)
    assert "\n" not in str(error.value)


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'^"embed_dims" is not a field of ViTConfig; did you mean "embed_dim"\?$'):
        ViT(embed_dims=64)
    with pytest.raises(ValueError, match=r'^"dpeth" is not a field of ViTConfig; did you mean "depth"'):
        create_model("Ti/16", dpeth=2)
