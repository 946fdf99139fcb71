"""The shape of a model from its tensors' shapes, its config and what the user says; questions where none of them tells."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peers import HEADS, timm_vit
from torch import Tensor

import vitrail
from vitrail.models import create_model
from vitrail.settings import SIZES, ViTConfig
from vitrail.weights.infer import Inferred, config_fields, infer
from vitrail.weights.libraries.timm.vit import VIT_LAYOUT
from vitrail.weights.libraries.transformers.config import DEFAULTS

Shapes = dict[str, tuple[int, ...]]


def shapes(*, dim: int, depth: int = 2, patch: int = 16, rows: int = 197, inner: int | None = None, **extra: Any) -> Shapes:
    """Those of a plain ViT, by our names; a value of None leaves a tensor out."""
    inner = inner or dim
    made: dict[str, Any] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, rows, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    for i in range(depth):
        made |= {f"blocks.{i}.{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        made |= {f"blocks.{i}.attn.qkv.weight": (3 * inner, dim), f"blocks.{i}.attn.qkv.bias": (3 * inner,)}
        made |= {f"blocks.{i}.attn.proj.weight": (dim, inner), f"blocks.{i}.attn.proj.bias": (dim,)}
        made |= {f"blocks.{i}.mlp.fc1.weight": (4 * dim, dim), f"blocks.{i}.mlp.fc2.weight": (dim, 4 * dim)}
    made |= {name.replace("__", "."): value for name, value in extra.items()}
    return {name: shape for name, shape in made.items() if shape is not None}


def inferred(given: Shapes, *, config: Any = None, prefix: str = "", **overrides: Any) -> Inferred:
    return infer(given, VIT_LAYOUT, config=config or {}, overrides=overrides, prefix=prefix)


# --------------------------------------------------------------------------------------------------------------------
# Heads

PUBLISHED = {
    192: 3,
    256: 4,
    320: 5,
    384: 6,
    512: 8,
    640: 10,
    768: 12,
    896: 14,
    1024: 16,
    1152: 16,
    1280: 16,
    1408: 16,
    1664: 16,
}


@pytest.mark.parametrize(("dim", "heads"), PUBLISHED.items())
def test_heads_of_published_widths(dim: int, heads: int) -> None:
    """As in our table of sizes and in timm's models of that width, and the receipt says that it was taken for granted."""
    result = inferred(shapes(dim=dim))
    assert (result.config.num_heads, result.config.head_dim) == (heads, None)
    assert result.assumed == (f"{heads} heads, as published at width {dim}",)
    assert all(size.num_heads == heads for size in SIZES.values() if size.embed_dim == dim)


def test_the_giants_of_one_width_differ_by_their_class_token() -> None:
    assert inferred(shapes(dim=1536)).config.num_heads == 24  # DINOv2
    assert inferred(shapes(dim=1536, rows=196, cls_token=None), mlp="gelu_tanh").config.num_heads == 16  # SigLIP


@pytest.mark.parametrize(
    ("dim", "offered"), [(48, "2 or num_heads=4 or num_heads=8"), (128, "2 or"), (1000, "2 or"), (7, "1$")]
)
def test_heads_of_other_widths_are_a_question(dim: int, offered: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^the tensors do not tell num_heads \(width {dim} is not that .*\): give num_heads={offered}"
    ):
        inferred(shapes(dim=dim))
    assert inferred(shapes(dim=dim), num_heads=1).config.num_heads == 1


def test_attention_that_is_not_as_wide_as_its_tokens() -> None:
    result = inferred(shapes(dim=48, inner=32), num_heads=2)
    assert (result.config.num_heads, result.config.head_dim) == (2, 16)
    result = inferred(shapes(dim=768, inner=512), num_heads=8)
    assert (result.config.num_heads, result.config.head_dim) == (8, 64)


def test_a_norm_of_queries_tells_the_heads() -> None:
    norms = {f"blocks.0.attn.{x}_norm.{kind}": (16,) for x in "qk" for kind in ("weight", "bias")}
    result = inferred({**shapes(dim=48), **norms})
    assert (result.config.num_heads, result.config.qk_norm, result.assumed) == (3, True, ())


# --------------------------------------------------------------------------------------------------------------------
# Everything else


@pytest.mark.parametrize("name", [f"{size}/16" for size in SIZES])
def test_our_own_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, depth=2)
    result = inferred({key: tuple(value.shape) for key, value in model.state_dict().items()})
    assert result.config == ViTConfig(**{**vars(model.config), "img_size": (224, 224)})
    assert (result.grid, result.positions_for) == ((14, 14), ("cls",))


def test_swiglu_has_a_first_layer_twice_as_wide() -> None:
    given = shapes(dim=384, blocks__0__mlp__fc1__weight=(2048, 384), blocks__0__mlp__fc2__weight=(384, 1024))
    config = inferred(given).config
    assert (config.mlp, round(config.mlp_ratio * 384)) == ("swiglu", 1024)


@pytest.mark.parametrize(
    ("extra", "fields"),
    [
        ({"blocks__0__ls1__gamma": (384,)}, {"init_values": 1e-5}),
        ({"dist_token": (1, 1, 384), "rows": 198}, {"dist_token": True, "no_embed_class": False}),
        ({"reg_token": (1, 4, 384)}, {"reg_tokens": 4}),
        ({"rows": 196, "blocks__0__ls1__gamma": (384,)}, {"no_embed_class": True}),
        ({"head__weight": (5, 384)}, {"num_classes": 5, "pool": "cls"}),
        ({"head__weight": (5, 768)}, {"num_classes": 5, "pool": "cls+avg"}),
        ({"head__weight": (5, 64)}, {"num_classes": 0}),
        (
            {"fc_norm__weight": (384,), "fc_norm__bias": (384,), "norm__weight": None, "norm__bias": None},
            {"pool": "avg", "fc_norm": True},
        ),
        ({"pre_logits__fc__weight": (384, 384)}, {"head": "mlp"}),
        ({"norm__weight": None, "norm__bias": None}, {"final_norm": False}),
        ({"patch": 14, "rows": 257}, {"patch_size": 14, "img_size": (224, 224)}),
        (
            {"patch_embed__proj__weight": (384, 1, 8, 16)},
            {"patch_size": (8, 16), "img_size": (112, 224), "in_channels": 1},
        ),
        ({"blocks__0__attn__qkv__bias": None}, {"qkv_bias": False}),
    ],
)
def test_parts_that_shapes_show(extra: dict[str, Any], fields: dict[str, Any]) -> None:
    config = inferred(shapes(dim=384, **extra)).config
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"patch_embed__proj__weight": (384, 3, 2, 16, 16)}, r"patch_embed.proj.weight is 384x3x2x16x16, and not of 4 axes$"),
        ({"patch_embed__proj__weight": (384, 768)}, r"patch_embed.proj.weight is 384x768, and not of 4 axes$"),
        ({"blocks__0__mlp__fc2__weight": (384, 0)}, r"blocks.0.mlp.fc2.weight is 384x0, and not of 2 axes$"),
        ({"blocks__0__norm1__bias": None}, r"blocks.0.norm1.weight comes without a bias, as in RMSNorm"),
        ({"blocks__7__attn__qkv__weight": (1152, 384)}, r"has 8 blocks, but nothing for block 2; it is not whole$"),
        ({"fc_norm__weight": (384,), "fc_norm__bias": (384,)}, r"one norm stands before the pooling and one behind it$"),
        (
            {"pre_logits__fc__weight": (64, 384)},
            r"the hidden layer of its head is 64 wide, not 384 as its tokens; leave the head",
        ),
        ({"rows": 200}, r"200 rows, which make no square; give img_size=.* whose grid at patch 16 has 199 patches"),
    ],
)
def test_shapes_of_no_plain_vit(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        inferred(shapes(dim=384, **extra))
    assert "\n" not in str(error.value)


def test_several_questions_are_one_line() -> None:
    given = shapes(dim=48, norm_pre__weight=(48,), norm_pre__bias=(48,), patch_embed__proj__bias=None)
    with pytest.raises(ValueError, match=r"num_heads \(.*\): give .*; nor mlp \(.*\): give mlp='quick_gelu' or mlp='gelu'$"):
        inferred(given)
    config = inferred(given, num_heads=4, mlp="quick_gelu").config
    assert (config.mlp, config.pre_norm, config.norm_eps) == ("quick_gelu", True, 1e-5)


# --------------------------------------------------------------------------------------------------------------------
# config.json


def of_timm(name: str, **args: Any) -> dict[str, Any]:
    return {"architecture": name, "pretrained_cfg": {"input_size": [3, 224, 224]}, "model_args": args}


def of_open_clip(vision: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model_cfg": {**fields, "vision_cfg": vision}}


AT_224 = {"img_size": (224, 224)}


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({}, {}),
        (of_timm("vit_base_patch16_clip_quickgelu_224"), {"mlp": "quick_gelu", "img_size": (224, 224)}),
        (of_timm("vit_base_patch16_clip_224"), {"mlp": "gelu", "img_size": (224, 224)}),
        (of_timm("vit_tiny_patch16_224", num_heads=2, img_size=[32, 64]), {"num_heads": 2, "img_size": (32, 64)}),
        (
            of_timm("vit_tiny_patch16_224", global_pool="avg", act_layer="gelu_tanh"),
            {**AT_224, "pool": "avg", "mlp": "gelu_tanh"},
        ),
        (
            {"num_attention_heads": 4, "layer_norm_eps": 1e-7, "image_size": 384, "hidden_act": "gelu_new"},
            {"num_heads": 4, "norm_eps": 1e-7, "img_size": 384, "mlp": "gelu_tanh"},
        ),
        (
            {"vision_config": {"num_attention_heads": 4, "hidden_act": "quick_gelu"}, "num_attention_heads": 99},
            {"num_heads": 4, "mlp": "quick_gelu"},
        ),
        ({"hidden_act": "silu", "use_swiglu_ffn": True}, {}),
        (
            of_open_clip({"width": 768, "image_size": 224}, quick_gelu=True),
            {"mlp": "quick_gelu", "num_heads": 12, "img_size": 224, "pool": "cls"},
        ),
        (
            of_open_clip({"width": 1280, "head_width": 80, "act_kwargs": {"approximate": "tanh"}, "pool_type": "avg"}),
            {"mlp": "gelu_tanh", "num_heads": 16, "pool": "avg"},
        ),
        (of_open_clip({"norm_kwargs": {"eps": 1e-6}}), {"mlp": "gelu", "norm_eps": 1e-6}),
        (of_open_clip({"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"}), {"mlp": "gelu", "pool": "map"}),
        (of_open_clip({"timm_model_name": "vit_base_patch16_224", "timm_pool": "token"}), {"mlp": "gelu", "pool": "cls"}),
    ],
)
def test_fields_that_a_config_states(config: dict[str, Any], fields: dict[str, Any]) -> None:
    assert config_fields(config) == fields


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (of_timm("vit_base_patch16_rpn_224"), "its norms stand behind attention and MLP"),
        (of_timm("vit_small_patch16_dinov3"), "its positions are rotary"),
        (of_timm("vit_tiny_patch16_224", global_pool="avgmax"), 'global_pool "avgmax" is none of token, avg, map'),
        (of_timm("vit_tiny_patch16_224", act_layer="silu"), 'activation "silu" is none of gelu, gelu_tanh, quick_gelu'),
        ({"hidden_act": "selu"}, 'activation "selu" is none of'),
        (
            {"model_type": "some_vlm", "rope_parameters": {"rope_theta": 1e4}},
            r"some_vlm is not a plain ViT: its positions are rotary",
        ),
    ],
)
def test_configs_of_no_plain_vit(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        inferred(shapes(dim=384), config=config)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_that_a_config_of_transformers_omits(kind: str) -> None:
    """Files by hand, such as SigLIP's on the Hub, say a model_type and little more."""
    config = transformers.AutoConfig.for_model(kind)
    assert {name: getattr(config, name) for name in DEFAULTS[kind]} == DEFAULTS[kind]
    fields = config_fields({"vision_config": {"model_type": kind}})
    assert fields == {key: value for key, value in config_fields(config.to_dict()).items() if key in fields}
    assert config_fields({"model_type": kind, "num_attention_heads": 3})["num_heads"] == 3


JUNK = st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | st.text(max_size=5)
JSON = st.recursive(JUNK, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))
KEYS = ("num_attention_heads", "layer_norm_eps", "image_size", "hidden_act", "model_type", "vision_config", "use_swiglu_ffn")
TIMM_KEYS = ("pretrained_cfg", "model_args", "global_pool", "num_classes")
CLIP_KEYS = ("width", "head_width", "image_size", "act_kwargs", "norm_kwargs", "pool_type", "timm_model_name", "timm_pool")
CONFIGS = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
    st.dictionaries(st.sampled_from(TIMM_KEYS), JSON, max_size=4).map(lambda fields: {"architecture": "vit_x", **fields}),
    st.dictionaries(st.sampled_from(CLIP_KEYS), JSON, max_size=4).map(lambda fields: {"model_cfg": {"vision_cfg": fields}}),
    st.fixed_dictionaries({"architecture": JSON}) | st.fixed_dictionaries({"model_cfg": JSON}),
)


@settings(max_examples=200, deadline=None)
@given(CONFIGS)
@example({"num_attention_heads": "\x1e"})
@example({"hidden_act": "\u2028", "architecture": "\x1b[2J"})
def test_a_config_of_nonsense_is_one_line(config: dict[str, Any]) -> None:
    says = ""
    try:
        inferred(shapes(dim=384), config=config)
    except ValueError as error:
        says = str(error)
    assert len(says.splitlines()) <= 1


def test_architecture_names_of_timm_imply_the_form_of_gelu() -> None:
    """Of every architecture with CLIP's, SigLIP's or our own test's names: the form of GELU, by its live model."""
    kinds = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
    for name in timm.list_models(["*_clip_*", "*siglip*", "*_gap_*", "*_map_*"], module="vision_transformer"):
        if any(word in name for word in ("_xp_", "dlittle", "dwee", "dpwee", "pwee")):
            continue
        patch = re.search(r"patch(\d+)", name)
        assert patch is not None
        act = type(timm_vit(name, side=2 * int(patch[1]), depth=1).blocks[0].mlp.act).__name__
        assert config_fields({"architecture": name})["mlp"] == kinds[act], name


def test_overrides_take_precedence_over_the_config() -> None:
    result = inferred(shapes(dim=48), config=of_timm("vit_tiny_patch16_clip_224", num_heads=2), num_heads=3, mlp="gelu_tanh")
    assert (result.config.num_heads, result.config.mlp) == (3, "gelu_tanh")


# --------------------------------------------------------------------------------------------------------------------
# Whatever is in a file

STATES: list[dict[str, Tensor]] = [
    timm_vit(side=32).state_dict(),
    timm_vit("deit_small_distilled_patch16_224", side=32).state_dict(),
    timm_vit("vit_medium_patch16_reg4_gap_256", side=32).state_dict(),
]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(range(len(STATES))), st.booleans())
def test_damaged_state_dicts_are_one_line(data: st.DataObject, index: int, strict: bool) -> None:
    """Tensors lost, renamed, of other shapes: an error of one line, or a model; never another error."""
    state = dict(STATES[index])
    for _ in range(data.draw(st.integers(1, 3), "damages")):
        name = data.draw(st.sampled_from(sorted(state)), "name")
        value = state.pop(name)
        how = data.draw(st.sampled_from(["lost", "renamed", "scalar", "flat", "axis", "halved", "empty", "integers"]), "how")
        made = {
            "scalar": lambda value=value: value.sum(),
            "flat": lambda value=value: value.flatten(),
            "axis": lambda value=value: value[None],
            "halved": lambda value=value: value[: len(value) // 2] if value.ndim else value,
            "empty": lambda value=value: value.flatten()[:0],
            "integers": lambda value=value: value.long(),
        }
        if how == "renamed":
            state[f"{name}.more"] = value
        elif how != "lost":
            state[name] = made[how]()
    says = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vitrail.load(state, num_heads=HEADS, strict=strict)
    except ValueError as error:
        says = str(error)
    assert "\n" not in says
