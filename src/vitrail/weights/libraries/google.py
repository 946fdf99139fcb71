"""Google's vision_transformer and big_vision: .npz files with Flax's names and layouts."""

# D width · h heads · d = D / h · P patch · C channels

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.models import Hybrid, ViT
from vitrail.settings import ViTConfig, pair
from vitrail.settings.hybrid import HybridConfig
from vitrail.weights.eval_transform import HALF, DefaultTransform
from vitrail.weights.library import Export, FamilyLayout, Layout, Library, Writer
from vitrail.weights.names import FLAT, SAME, TRANSPOSED, Form, KeyLine, KeyRow, key_table
from vitrail.weights.targets import ANY, Class, Inexpressible, check, cpu_state, rename, rename_family, with_zeros


def head_shape(cfg: ViTConfig) -> torch.Size:
    """Return (h, d)."""
    return torch.Size((cfg.num_heads, cfg.head_dim or cfg.embed_dim // cfg.num_heads))


# A convolution is (P, P, C, D), a dense layer (in, out), and attention has an axis for the heads
CONV = Form(lambda parts: parts[0].permute(3, 2, 0, 1), lambda x, cfg: [x.permute(2, 3, 1, 0)])
HEADS = Form(
    lambda parts: torch.cat([part.flatten(1).T for part in parts]),  # three of (D, h, d)
    lambda x, cfg: [part.T.unflatten(1, head_shape(cfg)) for part in x.split(head_shape(cfg).numel())],
    heads_axis=1,
)
HEADS_BIAS = Form(
    lambda parts: torch.cat([part.flatten() for part in parts]),  # three of (h, d)
    lambda x, cfg: [part.unflatten(0, head_shape(cfg)) for part in x.split(head_shape(cfg).numel())],
)
OUT = Form(lambda parts: parts[0].flatten(0, 1).T, lambda x, cfg: [x.T.unflatten(0, head_shape(cfg))])  # (h, d, D)

# --------------------------------------------------------------------------------------------------------------------
# Names


def layer(ours: str, theirs: str, kernel: Form) -> list[KeyLine]:
    """Return the rows of a layer."""
    return [(f"{ours}.weight", f"{theirs}/kernel", kernel), (f"{ours}.bias", f"{theirs}/bias", SAME)]


def norm(ours: str, theirs: str) -> list[KeyLine]:
    """Return the rows of a norm."""
    return [(f"{ours}.weight", f"{theirs}/scale"), (f"{ours}.bias", f"{theirs}/bias")]


def projections(ours: str, theirs: str, *names: str) -> list[KeyLine]:
    """Return the rows of attention's input projections, stacked in ours."""
    return [
        (f"{ours}.weight", tuple(f"{theirs}/{name}/kernel" for name in names), HEADS),
        (f"{ours}.bias", tuple(f"{theirs}/{name}/bias" for name in names), HEADS_BIAS),
    ]


def encoder(*, positions: str, attention: int, norm2: int, mlp: int) -> list[KeyLine]:
    """Return the encoder's rows, with the numbers that Flax gave the parts of a block."""
    block = "Transformer/encoderblock_#"
    heads = f"{block}/MultiHeadDotProductAttention_{attention}"
    return [
        ("pos_embed", positions),
        ("cls_token", "cls"),
        *layer("patch_embed.proj", "embedding", CONV),
        *norm("norm", "Transformer/encoder_norm"),
        *layer("pre_logits.fc", "pre_logits", TRANSPOSED),
        *layer("head", "head", TRANSPOSED),
        *norm("blocks.#.norm1", f"{block}/LayerNorm_0"),
        *projections("blocks.#.attn.qkv", heads, "query", "key", "value"),
        *layer("blocks.#.attn.proj", f"{heads}/out", OUT),
        *norm("blocks.#.norm2", f"{block}/LayerNorm_{norm2}"),
        *layer("blocks.#.mlp.fc1", f"{block}/MlpBlock_{mlp}/Dense_0", TRANSPOSED),
        *layer("blocks.#.mlp.fc2", f"{block}/MlpBlock_{mlp}/Dense_1", TRANSPOSED),
    ]


VISION_TRANSFORMER = Layout(
    name="Google vision_transformer",
    anchor="embedding/kernel",
    table=key_table(encoder(positions="Transformer/posembed_input/pos_embedding", attention=1, norm2=2, mlp=3)),
    assumes={"mlp": "gelu_tanh"},  # the default of flax.linen.gelu
    class_row=True,
)

MAP_HEADS = "MAPHead_0/MultiHeadDotProductAttention_0"
BIG_VISION = Layout(
    name="Google big_vision",
    anchor="embedding/kernel",
    table=key_table(
        [
            *encoder(positions="pos_embedding", attention=0, norm2=1, mlp=0),
            ("attn_pool.latent", "MAPHead_0/probe"),
            *projections("attn_pool.q", MAP_HEADS, "query"),
            *projections("attn_pool.kv", MAP_HEADS, "key", "value"),
            *layer("attn_pool.proj", f"{MAP_HEADS}/out", OUT),
            *norm("attn_pool.norm", "MAPHead_0/LayerNorm_0"),
            *layer("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0", TRANSPOSED),
            *layer("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1", TRANSPOSED),
        ]
    ),
    assumes=VISION_TRANSFORMER.assumes,
    computes_positions=True,
    class_row=False,
)


# --------------------------------------------------------------------------------------------------------------------
# Hybrids

_ROWS = {row.ours: row for row in VISION_TRANSFORMER.table}
_CNN = (  # names in the network before the patches
    (r"(?:stem\.)?(conv|norm)", r"\1_root"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.(conv\d|norm\d)", r"block<\1>/unit<\2>/\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.downsample\.(conv|norm)", r"block<\1>/unit<\2>/\3_proj"),
)
_LEAVES = {"conv.weight": "kernel", "norm.weight": "scale", "norm.bias": "bias"}


def hybrid_names(name: str) -> tuple[str, ...]:
    """Return Google's names of a hybrid's tensor; the name itself for one that their hybrids do not have."""
    if (theirs := _cnn_name(name)) is not None:
        return (theirs,)
    number, row = _row(name)
    return (name,) if row is None else tuple(theirs.replace("#", number) for theirs in row.theirs)


def hybrid_form(name: str) -> Form | None:
    """Return the conversion of a hybrid's tensor."""
    if (theirs := _cnn_name(name)) is not None:
        return CONV if theirs.endswith("kernel") else FLAT  # norms of the first files have four axes
    row = _row(name)[1]
    return None if row is None else row.form


def _row(name: str) -> tuple[str, KeyRow | None]:
    """Return the block and the row of a tensor of the Transformer."""
    number = re.match(r"blocks\.(\d+)\.", name)
    if number is None:
        return "", _ROWS.get(name)
    return number[1], _ROWS.get(f"blocks.#.{name[number.end() :]}")


def _cnn_name(name: str) -> str | None:
    """Return Google's name of a tensor of the network before the patches; None for another."""
    path, _, leaf = name.removeprefix("patch_embed.backbone.").rpartition(".")
    for pattern, theirs in _CNN:
        if name.startswith("patch_embed.backbone.") and re.fullmatch(pattern, path):
            short = re.sub(r"<(\d+)>", lambda match: str(int(match[1]) + 1), re.sub(pattern, theirs, path))  # counted from 1
            kind = "conv" if "conv" in short else "norm"
            return f"{short.replace('norm', 'gn')}/{_LEAVES[f'{kind}.{leaf}']}"
    return None


HYBRID_LAYOUT = FamilyLayout(
    HybridConfig,
    "Google vision_transformer",
    shows=("patch_embed.backbone.stem.conv.weight", "blocks.0.attn.qkv.weight"),
    names=hybrid_names,
    form=hybrid_form,
    fields=lambda config: {"mlp": "gelu_tanh", "cnn_eps": "google"},
)


def unstack(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Split big_vision's scanned blocks, which are one array with an axis for the depth, into one block each (views)."""
    scanned = [name for name in tensors if "/encoderblock/" in name]
    if not scanned:
        return tensors
    split = {name: tensors[name] for name in tensors if name not in scanned}
    for name in scanned:
        split |= {name.replace("/encoderblock/", f"/encoderblock_{i}/"): part for i, part in enumerate(tensors[name])}
    return split


# --------------------------------------------------------------------------------------------------------------------
# Writing

_VIT: dict[str, Collection[Any] | None] = {"mlp": ("gelu", "gelu_tanh"), "qkv_bias": ANY, "pos_embed": ANY, "head": ANY}
VIT = Class("Google's vision_transformer", _VIT)
BIG_VISION_TOKEN = Class("big_vision's ViT with a class token", {**_VIT, "no_embed_class": (True,)})
BIG_VISION_VIT = Class("big_vision's ViT", {**_VIT, "class_token": (False,), "pool": ("avg", "map")})


def plan(model: ViT) -> Export:
    """Export an .npz of vision_transformer or big_vision. Raises Inexpressible if neither has such a model."""
    cfg = model.config
    target = BIG_VISION_VIT if not cfg.class_token else BIG_VISION_TOKEN if cfg.no_embed_class else VIT
    check(cfg, target)
    layout, prefix = (VISION_TRANSFORMER, "") if target is VIT else (BIG_VISION, "params/")
    notes, arguments = _notes(cfg)
    return Export(
        "npz",
        _opens(arguments),
        tensors=rename(with_zeros(cpu_state(model), cfg), cfg, layout, prefix),
        notes=tuple(notes),
    )


def _notes(cfg: ViTConfig) -> tuple[list[str], list[str]]:
    """Return what an .npz lacks, and the arguments of `load` that give it."""
    notes, arguments = ["an .npz has no place for preprocessing and class names"], [""]
    if cfg.mlp == "gelu":
        notes.append('this model has the exact GELU, and flax computes its tanh form: load it with mlp="gelu"')
        arguments.append('mlp="gelu"')
    if len({side // patch for side, patch in zip(pair(cfg.img_size), pair(cfg.patch_size), strict=True)}) > 1:
        notes.append(f"the layout holds no grid that is not square: load it with img_size={cfg.img_size}")
        arguments.append(f"img_size={cfg.img_size}")
    return notes, arguments


def _opens(arguments: list[str]) -> str:
    return f'vitrail.load("PATH"{", ".join(arguments)})'


HYBRID = Class("Google's hybrid", {"mlp": ("gelu", "gelu_tanh"), "head": ANY})


def hybrid_plan(model: Hybrid) -> Export:
    """Export an .npz of vision_transformer. Raises Inexpressible for another CNN than its ResNet."""
    cfg = model.config
    check(cfg, HYBRID)
    if cfg.cnn != "bit":
        raise Inexpressible(f'{HYBRID.name} has no cnn "{cfg.cnn}", only "bit"')
    tensors = rename_family(model, HYBRID_LAYOUT)
    notes, arguments = _notes(cfg)
    if cfg.cnn_eps == "timm":
        notes.append("this model has timm's epsilons in its CNN, and not those of Google's code: load it with cnn_eps=\"timm\"")
        arguments.append('cnn_eps="timm"')
    return Export("npz", _opens(arguments), tensors=tensors, notes=tuple(notes))


GOOGLE = Library(
    layouts=(VISION_TRANSFORMER, BIG_VISION),
    family_layouts=(HYBRID_LAYOUT,),
    unstack=unstack,
    default_transforms=(
        # big_vision: configs/vit_i1k.py and its kin, resize_small(256)|central_crop(224)|value_range(-1, 1)
        DefaultTransform("big_vision", "big_vision's checkpoints", HALF, 0.875, "center", "bilinear"),
        # google-research/vision_transformer: vit_jax/input_pipeline.py resizes to the crop's size
        DefaultTransform("google", "Google's checkpoints", HALF, 1.0, "squash", "bilinear"),
    ),
    writer=Writer("npz", {ViTConfig: plan, HybridConfig: hybrid_plan}, suffixes=(".npz",)),
)
