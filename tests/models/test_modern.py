from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.data.batch import Batch
from vitrail.models.backbone import View
from vitrail.models.counts import count
from vitrail.models.families import build_on_meta
from vitrail.models.modern import ModernViT
from vitrail.models.rotary import Rotary, rotate
from vitrail.models.vit import ViT
from vitrail.settings import AugmentConfig, MaeConfig, Preprocessing
from vitrail.settings.modern import MODERN_SIZES, ModernConfig, modern_name, parse_modern_name
from vitrail.tasks.mae import Mae

OURS: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 24, "num_classes": 5}
THEIRS: dict[str, Any] = {"dynamic_img_size": True, **OURS}
VARIANTS = [  # one of each kind
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "vit_small_patch16_lingbot",
    "eva_giant_patch14_224",
    "eva02_small_patch14_224",
    "eva02_base_patch14_224",
    "eva02_base_patch16_clip_224",
    "eva02_enormous_patch14_clip_224",
    "vit_pe_core_base_patch16_224",
    "vit_pe_core_gigantic_patch14_448",
    "vit_pe_lang_large_patch14_448",
    "vit_pe_spatial_base_patch16_512",
    "vit_betwixt_patch16_rope_reg4_gap_256",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_base_patch16_sapiens2",
    "aimv2_large_patch14_224",
]
SIZES = [(24, 24), (32, 20), (16, 40)]


def random(model: nn.Module) -> Any:
    """With weights that tell everything apart."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "gamma" in name else 0.1)
    return model.eval()


def tiny(name: str, **fields: Any) -> ModernViT:
    more: dict[str, Any] = {"mlp_ratio": 2.0, **fields}
    if "sapiens2" in name:
        more |= {"kv_heads": 1, "full_attention_blocks": 1, "depth": 3}
    if "pe_core" in name:
        more |= {"pool_mlp_ratio": 4.0}
    model: ModernViT = random(ModernViT(ModernConfig(**{**(parse_modern_name(name) or {}), **OURS, **more})))
    return model


def of_timm(name: str) -> nn.Module:
    more: dict[str, Any] = {"mlp_ratio": 2.0}
    if "sapiens2" in name:
        more |= {"num_kv_heads": (2, 1, 2), "depth": 3}
    return timm.create_model(name, **{**THEIRS, **more}).eval()


def some_images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@functools.cache
def names_of_timm() -> list[str]:
    return [*timm.list_models(module="eva"), *timm.list_models("aimv2*")]


# --------------------------------------------------------------------------------------------------------------------
# Parity


@pytest.mark.parametrize("name", VARIANTS)
def test_same_outputs_and_gradients_as_timm(name: str) -> None:
    ours, theirs = tiny(name), of_timm(name)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for size in SIZES:
        images = some_images(*size)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
            features = ours.features(images)
            torch.testing.assert_close(features.tokens, theirs.forward_features(images), atol=1e-5, rtol=1e-5)
            pooled = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
            torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-5)
    for model in (ours, theirs):
        model(some_images(32, 20)).square().sum().backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_all_architectures_of_timm_have_their_tensors() -> None:
    """Every architecture of timm's module `eva`, and AIMv2, on the meta device."""
    assert len(names_of_timm()) >= 77
    for name in names_of_timm():
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=1000)
        ours = build_on_meta(ModernConfig(**(parse_modern_name(name) or {})))
        shapes = [{key: tuple(value.shape) for key, value in model.state_dict().items()} for model in (ours, theirs)]
        assert shapes[0] == shapes[1], name


# --------------------------------------------------------------------------------------------------------------------
# Names and sizes

PARAMETERS = {
    "dinov3_s16": 21_981_160,
    "dinov3_splus16": 29_077_480,
    "dinov3_b16": 86_428_648,
    "dinov3_l16": 304_153_576,
    "dinov3_hplus16": 841_872_360,
    "dinov3_7b16": 6_720_127_976,
    "eva_g14": 1_012_555_112,
    "eva_g14_clip": 1_012_555_112,
    "eva02_t14": 5_695_144,
    "eva02_s14": 22_006_120,
    "eva02_b14": 86_527_720,
    "eva02_l14": 304_293_800,
    "eva02_b16_clip": 86_638_312,
    "eva02_l14_clip": 304_342_952,
    "eva02_e14_clip": 4_350_513_896,
    "pe_core_t16": 6_235_240,
    "pe_core_s16": 23_971_048,
    "pe_core_b16": 93_655_528,
    "pe_core_l14": 317_127_656,
    "pe_core_g14": 1_881_603_560,
    "pe_lang_l14": 292_440_040,
    "pe_lang_g14": 1_742_459_624,
    "pe_spatial_t16": 5_876_200,
    "pe_spatial_s16": 22_368_232,
    "pe_spatial_b16": 87_202_792,
    "pe_spatial_l14": 304_989_160,
    "pe_spatial_g14": 1_853_424_104,
    "vjepa2_l16": 304_123_880,
    "vjepa2_h16": 631_945_960,
    "vjepa2_g16": 1_012_501_608,
    "aimv2_l14": 310_222_824,
    "aimv2_h14": 682_388_968,
    "aimv2_1b14": 1_237_007_336,
    "aimv2_3b14": 2_723_731_432,
    "rope_s16": 21_984_232,
    "rope_b16": 86_434_792,
    "rope_l16": 304_174_056,
}


def test_sizes_have_their_parameters() -> None:
    assert PARAMETERS.keys() == MODERN_SIZES.keys()
    for name, parameters in PARAMETERS.items():
        assert count(ModernConfig(**MODERN_SIZES[name])).parameters == parameters, name


def test_names_and_configs() -> None:
    for name in MODERN_SIZES:
        assert modern_name(ModernConfig(**(parse_modern_name(name) or {}))) == name
    for name in names_of_timm():
        fields = parse_modern_name(name)
        assert fields is not None
        assert parse_modern_name(modern_name(ModernConfig(**fields))) is not None
    assert parse_modern_name("eva02_base_patch14_448") == {**MODERN_SIZES["eva02_b14"], "img_size": 448}
    assert parse_modern_name("dinov3_vitb16") == parse_modern_name("dinov3_b16")
    assert parse_modern_name("vit_base_patch16_224") is None
    assert parse_modern_name("B/16") is None
    assert ModernConfig() == ModernConfig(**MODERN_SIZES["dinov3_b16"])
    assert modern_name(tiny("dinov3_s16").config) == "modern_custom"
    with pytest.raises(ValueError, match='model "dinov3_x16" is not a size of a modern ViT; did you mean "dinov3_'):
        parse_modern_name("dinov3_x16")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"embed_dim": 30, "num_heads": 3}, "a head of 10 channels can't be turned along two axes; use a multiple of 4"),
        ({"rope": "mixed"}, 'rope "mixed" has rope_layout "interleaved"; set it'),
        ({"rope_ref_grid": 16}, 'rope_ref_grid 16 scales rope "grid", not "centred"; leave it out'),
        ({"rope_rescale": 0.5}, "rope_rescale 0.5 is a factor and must be at least 1"),
        ({"kv_heads": 2}, 'kv_heads 2 must divide num_heads 12, and needs qkv "split"'),
        ({"scale_mlp": True, "mlp": "swiglu"}, 'scale_mlp true with mlp "swiglu" needs gate "split"'),
        ({"pool": "avg", "depth": -1}, "depth -1 must not be negative"),
        ({"windows": 3}, '"windows" is not a field of ModernConfig'),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModernViT(**fields)


# --------------------------------------------------------------------------------------------------------------------
# Rotary positions


@given(st.sampled_from(["grid", "centred", "alternating"]), st.sampled_from(["yx", "xy"]), st.booleans(), st.data())
@settings(max_examples=25, deadline=None)
def test_a_product_of_turned_vectors_depends_on_their_distance(rope: Any, axes: Any, half: bool, data: st.DataObject) -> None:
    layout: Any = "half" if half else "interleaved"
    cfg = ModernConfig(**{**OURS, "rope": rope, "rope_axes": axes, "rope_layout": layout, "rope_temperature": 10.0})
    rotation = Rotary(cfg)((5, 6), prefix=0, device=torch.device("cpu")).of_block(0)
    q, k = torch.randn(16), torch.randn(16)
    at = st.integers(0, 2)
    (y, x), (dy, dx), (sy, sx) = (data.draw(st.tuples(at, at)) for _ in range(3))

    def turned(vector: Tensor, row: int, column: int) -> Tensor:
        everywhere = vector.expand(1, 1, 30, 16)
        return rotate(everywhere, rotation, half=half)[0, 0, row * 6 + column]

    def product(row: int, column: int) -> Tensor:
        return turned(q, row, column) @ turned(k, row + dy, column + dx)

    torch.testing.assert_close(product(y, x), product(sy, sx), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned(q, y, x).norm(), q.norm(), atol=1e-4, rtol=1e-4)


def test_prefix_tokens_are_not_turned() -> None:
    rotation = Rotary(ModernConfig(**OURS))((3, 3), prefix=5, device=torch.device("cpu"))
    assert torch.equal(rotation.cos[..., :5, :], torch.ones(1, 1, 1, 5, 16))
    assert torch.equal(rotation.sin[..., :5, :], torch.zeros(1, 1, 1, 5, 16))


def test_coordinates_move_in_training_only() -> None:
    model = tiny("dinov3_s16", rope_shift=0.1, rope_jitter=1.5, rope_rescale=2.0)
    x = some_images(24, 24)
    assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), tiny("dinov3_s16")(x))
    model.train()
    assert not torch.equal(model(x), model(x))


# --------------------------------------------------------------------------------------------------------------------
# Views

KINDS = ["dinov3_s16", "eva02_b14", "pe_core_b16", "vit_small_patch16_rope_mixed", "aimv2_l14", "vit_base_patch16_sapiens2"]


@pytest.mark.parametrize("name", KINDS)
def test_visible_patches_attend_to_each_other_alone(name: str) -> None:
    """All patches in another order are the same patches; some of them are those of a masked pass."""
    model, x = tiny(name), some_images(24, 16)
    order = torch.stack([torch.randperm(24), torch.randperm(24)])
    whole, shuffled = model.features(x), model.features(x, View(visible=order))
    assert shuffled.pyramid is None
    assert whole.pyramid is not None
    assert whole.pyramid[0].shape == (2, 32, 6, 4)
    assert torch.equal(whole.pyramid[0].flatten(2).mT, whole.tokens[:, whole.prefix :])
    torch.testing.assert_close(shuffled.pooled, whole.pooled, atol=1e-5, rtol=1e-5)
    patches = whole.tokens[:, whole.prefix :].gather(1, order[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(shuffled.tokens[:, whole.prefix :], patches, atol=1e-5, rtol=1e-5)
    few = model.features(x, View(visible=order[:, :5]))
    assert few.tokens.shape[1] == whole.prefix + 5
    assert few.grid == (6, 4)


@pytest.mark.parametrize("name", ["dinov3_s16", "rope_s16", "vit_small_patch16_rope_mixed", "vit_medium_patch16_rope_reg1_gap"])
def test_an_image_on_a_canvas_is_that_image(name: str) -> None:
    """Rotary positions are those on the image."""
    model, x = tiny(name), some_images(16, 24)
    canvas = torch.randn(2, 3, 32, 28)
    canvas[:, :, :16, :24] = x
    sizes = torch.tensor([[16, 24], [16, 24]])
    torch.testing.assert_close(model(canvas, sizes=sizes), model(x), atol=1e-5, rtol=1e-5)
    padded = torch.zeros(2, 3, 16, 24)
    padded[:, :, :15, :22] = x[:, :, :15, :22]
    torch.testing.assert_close(model(x[:, :, :15, :22], pad=True), model(padded), atol=1e-5, rtol=1e-5)


def test_another_patch_is_cut_for_one_call() -> None:
    model, x = tiny("eva02_s14"), some_images(48, 32)
    assert model(x, patch_size=8).isfinite().all()
    assert model.features(x, View(patch_size=8)).grid == (6, 4)


@pytest.mark.parametrize("name", KINDS)
def test_attention_maps_are_those_of_the_pass(name: str) -> None:
    model, x = tiny(name), some_images(24, 24)
    maps = model.attention_maps(x, layers=[0, -1], queries="all")
    tokens = model.prefix_tokens + 36
    for weights in maps.values():
        assert weights.shape == (2, 2, tokens, tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, tokens))
    tokens_in, context = model.embed(x, pad=False, sizes=None)
    kept: list[Any] = []
    model.blocks[0](tokens_in, context, kept)
    out = maps[0] @ kept[0].values
    torch.testing.assert_close(out, kept[0].out, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Blocks


@pytest.mark.parametrize("position", ["pre", "post", "res-post"])
def test_norm_positions_are_their_equations(position: Any) -> None:
    model = tiny("dinov3_s16", norm_position=position)
    block: Any = model.blocks[0]
    x, context = model.embed(some_images(24, 24), pad=False, sizes=None)
    attend, g1, g2 = (lambda y: block.attn(y, context)), block.gamma_1, block.gamma_2
    if position == "pre":
        y = x + g1 * attend(block.norm1(x))
        y = y + g2 * block.mlp(block.norm2(y))
    elif position == "post":
        y = block.norm1(x + g1 * attend(x))
        y = block.norm2(y + g2 * block.mlp(y))
    else:
        y = x + g1 * block.norm1(attend(x))
        y = y + g2 * block.norm2(block.mlp(y))
    torch.testing.assert_close(block(x, context), y)


def test_stages_hold_every_parameter_once() -> None:
    for name in KINDS:
        model = tiny(name)
        stages = model.stages()
        assert [stage.name for stage in stages] == ["stem", *(f"blocks.{i}" for i in range(model.config.depth)), "head"]
        for key, _ in model.named_parameters():
            assert sum(stage.owns(key) for stage in stages) == 1, key
        assert ("rope.freqs" in model.no_decay) == (model.config.rope == "mixed")


@pytest.mark.parametrize("name", KINDS)
def test_recomputing_the_blocks_changes_no_gradient(name: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = tiny(name).train()
        model.checkpointing = recompute
        model(some_images(24, 24)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_random_draws_in_training_only() -> None:
    model = tiny("dinov3_s16", drop_path_rate=0.9, patch_drop_rate=0.5, proj_drop_rate=0.1, attn_drop_rate=0.1)
    x = some_images(24, 24)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_a_fresh_head_and_fresh_weights() -> None:
    model = tiny("dinov3_s16")
    model.reset_head(7)
    assert model(some_images(24, 24)).shape == (2, 7)
    model.reset_head(0)
    torch.testing.assert_close(model(some_images(24, 24)), model.embedding(some_images(24, 24)))
    for name in KINDS:
        fresh, again = tiny(name), ModernViT(tiny(name).config)
        fresh.reset_parameters()
        for key, value in fresh.named_parameters():
            assert value.std() < 0.2 or key == "rope.freqs", key
            assert (value.unique().numel() == 1) == (again.get_parameter(key).unique().numel() == 1), key


def test_plain_blocks_are_those_of_a_vit() -> None:
    """Without rotary positions, and with a plain ViT's fields, it is one."""
    plain = random(ViT(**OURS))
    fields = {"rope": "none", "init_values": None, "reg_tokens": 0, "pos_embed": "learn", "norm_eps": 1e-6, "key_bias": True}
    ours = ModernViT(**{**OURS, **fields})
    ours.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(ours.eval()(some_images(24, 24)), plain(some_images(24, 24)), atol=1e-6, rtol=1e-6)


def test_half_precision_is_near() -> None:
    for name in KINDS:
        model = tiny(name)
        x = some_images(24, 24)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        torch.testing.assert_close(out.float(), model(x), atol=0.3, rtol=0.3)


@pytest.mark.parametrize("name", KINDS)
def test_masked_autoencoding(name: str) -> None:
    model = ModernViT(tiny(name).config).train()
    images = Preprocessing(img_size=(24, 24), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    cfg = MaeConfig(decoder_dim=16, decoder_depth=1, decoder_heads=2)
    task = Mae(model, preprocessing=images, cfg=cfg, augment=AugmentConfig(), seed=0)
    x, visible = some_images(24, 24), torch.tensor([[0, 7, 20], [3, 11, 35]])
    index = torch.arange(2)
    batch = Batch(images=x, targets=torch.zeros(2, 1), labels=torch.zeros(2).long(), indexes=index, visible=visible)
    loss = task(batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    for key, parameter in model.blocks.named_parameters():
        assert parameter.grad is not None, key
    assert task.leaves_parameters_out()
