"""What each origin calls our tensors: one table an origin, read from their names to ours and back.

A row says where a tensor of ours is found there: under one name, or stacked from several. "#" is the number of a block,
and ".*" stands for weight and bias. Rows of one name of ours are other spellings of the same thing: the first one that
the file has is taken. Nothing in here computes but the forms: how a layout there becomes ours, and back.
"""

# D width · E width of what the head sees · h heads · d = D / h · P patch · C channels · n depth

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.config import ViTConfig, pair

# --------------------------------------------------------------------------------------------------------------------
# Forms: how a layout there becomes ours, and back


class Form(NamedTuple):
    """A layout: the parts there to a tensor of ours, and a tensor of ours to the parts there."""

    read: Callable[[list[Tensor]], Tensor]
    write: Callable[[Tensor, ViTConfig], list[Tensor]]


def _heads(cfg: ViTConfig) -> tuple[int, int]:
    return cfg.num_heads, cfg.head_dim or cfg.embed_dim // cfg.num_heads


def _read_linear_patch(parts: list[Tensor]) -> Tensor:
    """(D, P P C) to (D, C, P, P): three channels where that makes a square patch, else one."""
    [weight] = parts
    if weight.ndim == 4:
        return weight
    for channels in (3, 1):
        side = round((weight.shape[1] / channels) ** 0.5)
        if side * side * channels == weight.shape[1]:
            return weight.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
    raise ValueError(
        f"a patch embedding of {weight.shape[1]} numbers is no square patch of 3 channels or 1; reshape it to (D, C, P, P)"
    )


def _read_pixel_norm(parts: list[Tensor]) -> Tensor:
    return _read_linear_patch([parts[0][None]]).reshape(-1)


def _write_pixel_norm(x: Tensor, cfg: ViTConfig) -> list[Tensor]:
    return [x.reshape(cfg.in_channels, *pair(cfg.patch_size)).permute(1, 2, 0).reshape(-1)]


SAME = Form(lambda parts: parts[0], lambda x, cfg: [x])
STACKED = Form(lambda parts: torch.cat(parts), lambda x, cfg: list(x.chunk(3)))
STACKED_PAIR = Form(lambda parts: torch.cat(parts), lambda x, cfg: list(x.chunk(2)))
TOKENS = Form(lambda parts: parts[0].reshape(1, -1, parts[0].shape[-1]), lambda x, cfg: [x[0]])  # (n, D) or (D,)
TOKEN = Form(TOKENS.read, lambda x, cfg: [x.reshape(-1)])  # written as (D,)
TRANSPOSED = Form(lambda parts: parts[0].T, lambda x, cfg: [x.T])
LINEAR_PATCH = Form(_read_linear_patch, lambda x, cfg: [x.permute(0, 2, 3, 1).flatten(1)])
PIXEL_NORM = Form(_read_pixel_norm, _write_pixel_norm)
# flax: a convolution is (P, P, C, D), a dense layer (in, out), attention has an axis for the heads
FLAX_CONV = Form(lambda parts: parts[0].permute(3, 2, 0, 1), lambda x, cfg: [x.permute(2, 3, 1, 0)])
FLAX_HEADS = Form(
    lambda parts: torch.cat([part.flatten(1).T for part in parts]),  # three of (D, h, d)
    lambda x, cfg: [part.T.unflatten(1, _heads(cfg)) for part in x.split(_heads(cfg)[0] * _heads(cfg)[1])],
)
FLAX_HEADS_BIAS = Form(
    lambda parts: torch.cat([part.flatten() for part in parts]),  # three of (h, d)
    lambda x, cfg: [part.unflatten(0, _heads(cfg)) for part in x.split(_heads(cfg)[0] * _heads(cfg)[1])],
)
FLAX_OUT = Form(lambda parts: parts[0].flatten(0, 1).T, lambda x, cfg: [x.T.unflatten(0, _heads(cfg))])  # (h, d, D)
# BEiT has no bias for its keys: zero says the same
NO_KEY_BIAS = Form(
    lambda parts: torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]]), lambda x, cfg: [x.chunk(3)[0], x.chunk(3)[2]]
)
# OpenAI's CLIP multiplies by its projection from the right, (D, K), and has no bias
NO_BIAS = Form(lambda parts: parts[0].new_zeros(parts[0].shape[0]), lambda x, cfg: [])


class Row(NamedTuple):
    """Where one tensor of ours is found."""

    ours: str
    theirs: tuple[str, ...]
    form: Form = SAME


Line = tuple[str, str | tuple[str, ...]] | tuple[str, str | tuple[str, ...], Form]


def rows(lines: Iterable[Line]) -> tuple[Row, ...]:
    """The rows of a table, each ".*" as weight and bias."""

    def made(ours: str, theirs: str | tuple[str, ...], form: Form = SAME) -> Iterator[Row]:
        parts = (theirs,) if isinstance(theirs, str) else theirs
        for kind in ("weight", "bias") if ours.endswith(".*") else ("",):
            yield Row(ours.replace("*", kind), tuple(part.replace("*", kind) for part in parts), form)

    return tuple(row for line in lines for row in made(*line))


def flax(ours: str, theirs: str, kernel: Form) -> list[Line]:
    """Weight and bias of a layer, as flax names them."""
    return [(f"{ours}.weight", f"{theirs}/kernel", kernel), (f"{ours}.bias", f"{theirs}/bias", SAME)]


def flax_norm(ours: str, theirs: str) -> list[Line]:
    """Weight and bias of a norm, as flax names them."""
    return [(f"{ours}.weight", f"{theirs}/scale"), (f"{ours}.bias", f"{theirs}/bias")]


# --------------------------------------------------------------------------------------------------------------------
# Origins


@dataclass(frozen=True)
class Origin:
    """One library's or repository's way to write a plain ViT."""

    name: str
    anchor: str
    """The name of the patches' projection: what stands before it in a file is a wrapper's prefix."""
    table: tuple[Row, ...]
    assumes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ViTConfig that its code fixes and no tensor shows."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Patterns of names that are put right before the table is read."""
    ignored: str = r"(?!)"
    """Pattern of names that belong to it and have no part in the encoder."""
    computes_positions: bool = False
    """Its files may leave the positions out, for its code computes them."""
    class_row: bool | None = None
    """Whether its position embedding has a row for the class token; None where it may or may not."""


TIMM_TABLE = rows(
    [
        ("cls_token", "cls_token"),
        ("dist_token", "dist_token"),
        ("reg_token", "reg_token"),
        ("pos_embed", "pos_embed"),
        ("patch_embed.proj.*", "patch_embed.proj.*"),
        ("norm_pre.*", "norm_pre.*"),
        ("blocks.#.norm1.*", "blocks.#.norm1.*"),
        ("blocks.#.attn.qkv.*", "blocks.#.attn.qkv.*"),
        ("blocks.#.attn.q_norm.*", "blocks.#.attn.q_norm.*"),
        ("blocks.#.attn.k_norm.*", "blocks.#.attn.k_norm.*"),
        ("blocks.#.attn.proj.*", "blocks.#.attn.proj.*"),
        ("blocks.#.ls1.gamma", "blocks.#.ls1.gamma"),
        ("blocks.#.norm2.*", "blocks.#.norm2.*"),
        ("blocks.#.mlp.fc1.*", "blocks.#.mlp.fc1.*"),
        ("blocks.#.mlp.fc2.*", "blocks.#.mlp.fc2.*"),
        ("blocks.#.ls2.gamma", "blocks.#.ls2.gamma"),
        ("norm.*", "norm.*"),
        ("attn_pool.latent", "attn_pool.latent"),
        ("attn_pool.q.*", "attn_pool.q.*"),
        ("attn_pool.kv.*", "attn_pool.kv.*"),
        ("attn_pool.proj.*", "attn_pool.proj.*"),
        ("attn_pool.norm.*", "attn_pool.norm.*"),
        ("attn_pool.mlp.fc1.*", "attn_pool.mlp.fc1.*"),
        ("attn_pool.mlp.fc2.*", "attn_pool.mlp.fc2.*"),
        ("fc_norm.*", "fc_norm.*"),
        ("pre_logits.fc.*", "pre_logits.fc.*"),
        ("head.*", "head.*"),
        ("head.weight", "head.proj.weight"),  # open_clip around a tower of timm's
        ("head_dist.*", "head_dist.*"),
    ]
)

OURS = Origin(
    name="vitrail",
    anchor="patch_embed.proj.weight",
    table=(
        *TIMM_TABLE,
        *rows([("patch_embed.pixel_norm.*", "patch_embed.pixel_norm.*"), ("patch_embed.norm.*", "patch_embed.norm.*")]),
        *rows(
            (f"patch_embed.stem.{i}.{name}", f"patch_embed.stem.{i}.{name}")
            for i in range(15)
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
    ),
)

TIMM = Origin(
    name="timm",  # and the raw files of DeiT, DINO and MAE, whose code timm's names come from
    anchor="patch_embed.proj.weight",
    table=TIMM_TABLE,
    spellings=((r"\.gamma_([12])$", r".ls\1.gamma"), (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")),
    ignored=r"(mask_token|decoder_|decoder\.|head\.(mlp|last_layer|projection)|predictor)",
)

DINOV2 = Origin(
    name="DINOv2",
    anchor="patch_embed.proj.weight",
    table=(
        *rows(
            [
                ("reg_token", "register_tokens"),
                ("blocks.#.mlp.fc1.*", "blocks.#.mlp.w12.*"),
                ("blocks.#.mlp.fc2.*", "blocks.#.mlp.w3.*"),
            ]
        ),
        *TIMM_TABLE,
    ),
    spellings=TIMM.spellings,  # its training code keeps blocks in chunks, each under the number it has in all
    ignored=r"(mask_token|dino_head|ibot_head)",
)

EVA = Origin(
    name="timm EVA",  # and BEiT, whose relative positions are refused
    anchor="patch_embed.proj.weight",
    table=(
        *rows([("blocks.#.attn.qkv.bias", ("blocks.#.attn.q_bias", "blocks.#.attn.v_bias"), NO_KEY_BIAS)]),
        *TIMM_TABLE,
    ),
    spellings=TIMM.spellings,
    ignored=r"mask_token",
)

TRANSFORMERS_TABLE = rows(
    [
        ("cls_token", "embeddings.cls_token"),
        ("dist_token", "embeddings.distillation_token"),
        ("reg_token", "embeddings.register_tokens"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
        ("blocks.#.norm1.*", "layers.#.layernorm_before.*"),
        ("blocks.#.attn.qkv.*", tuple(f"layers.#.attention.{x}_proj.*" for x in "qkv"), STACKED),
        ("blocks.#.attn.qkv.bias", ("layers.#.attention.q_proj.bias", "layers.#.attention.v_proj.bias"), NO_KEY_BIAS),
        ("blocks.#.attn.proj.*", "layers.#.attention.o_proj.*"),
        ("blocks.#.ls1.gamma", "layers.#.lambda_1"),
        ("blocks.#.norm2.*", "layers.#.layernorm_after.*"),
        ("blocks.#.mlp.fc1.*", "layers.#.mlp.fc1.*"),
        ("blocks.#.mlp.fc1.*", ("layers.#.mlp.gate_proj.*", "layers.#.mlp.up_proj.*"), STACKED_PAIR),
        ("blocks.#.mlp.fc2.*", "layers.#.mlp.fc2.*"),
        ("blocks.#.mlp.fc2.*", "layers.#.mlp.down_proj.*"),
        ("blocks.#.ls2.gamma", "layers.#.lambda_2"),
        ("norm.*", "layernorm.*"),
        ("fc_norm.*", "pooler.layernorm.*"),
        ("head.*", "classifier.*"),
        ("head.*", "cls_classifier.*"),
        ("head_dist.*", "distillation_classifier.*"),
    ]
)

# What transformers before version 5 wrote, and most files on the Hub still hold, put into today's names
OLD_TRANSFORMERS = (
    (r"^encoder\.layer\.", r"layers."),
    (r"\.attention\.attention\.query\.", r".attention.q_proj."),
    (r"\.attention\.attention\.key\.", r".attention.k_proj."),
    (r"\.attention\.attention\.value\.", r".attention.v_proj."),
    (r"\.attention\.output\.dense\.", r".attention.o_proj."),
    (r"\.intermediate\.dense\.", r".mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", r".mlp.fc1."),
    (r"\.mlp\.weights_out\.", r".mlp.fc2."),
)
OLD_TRANSFORMERS_DINOV2 = (
    *OLD_TRANSFORMERS,
    (r"(layers\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(layers\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"\.layer_scale([12])\.lambda1$", r".lambda_\1"),
)

TRANSFORMERS = Origin(
    name="transformers",
    class_row=True,
    anchor="embeddings.patch_embeddings.projection.weight",
    table=TRANSFORMERS_TABLE,
    assumes={"norm_eps": 1e-12},
    spellings=OLD_TRANSFORMERS,
    ignored=r"(embeddings\.mask_token|pooler\.dense|decoder|lm_head)",
)

TRANSFORMERS_DINOV2 = Origin(
    name="transformers DINOv2",
    class_row=True,
    anchor="embeddings.patch_embeddings.projection.weight",
    table=TRANSFORMERS_TABLE,
    assumes={"norm_eps": 1e-6},
    spellings=OLD_TRANSFORMERS_DINOV2,
    ignored=TRANSFORMERS.ignored,
)

# Both towers of transformers' CLIP and SigLIP
TOWER: list[Line] = [
    ("patch_embed.proj.*", "embeddings.patch_embedding.*"),
    ("pos_embed", "embeddings.position_embedding.weight", TOKENS),
    ("blocks.#.norm1.*", "encoder.layers.#.layer_norm1.*"),
    ("blocks.#.attn.qkv.*", tuple(f"encoder.layers.#.self_attn.{x}_proj.*" for x in "qkv"), STACKED),
    ("blocks.#.attn.proj.*", "encoder.layers.#.self_attn.out_proj.*"),
    ("blocks.#.norm2.*", "encoder.layers.#.layer_norm2.*"),
    ("blocks.#.mlp.fc1.*", "encoder.layers.#.mlp.fc1.*"),
    ("blocks.#.mlp.fc2.*", "encoder.layers.#.mlp.fc2.*"),
    ("norm.*", "post_layernorm.*"),
]

TRANSFORMERS_CLIP = Origin(
    name="transformers CLIP",
    class_row=True,
    anchor="embeddings.patch_embedding.weight",
    table=rows(
        [
            *TOWER,
            ("cls_token", "embeddings.class_embedding", TOKEN),
            ("norm_pre.*", "pre_layrnorm.*"),
            ("norm_pre.*", "pre_layernorm.*"),  # OWL-ViT
            ("head.weight", "visual_projection.weight"),
            ("head.*", "classifier.*"),
        ]
    ),
    assumes={"norm_eps": 1e-5},
    ignored=r"embeddings\.position_ids",
)

TRANSFORMERS_SIGLIP = Origin(
    name="transformers SigLIP",
    anchor="embeddings.patch_embedding.weight",
    table=rows(
        [
            *TOWER,
            ("attn_pool.latent", "head.probe"),
            ("attn_pool.proj.*", "head.attention.out_proj.*"),
            ("attn_pool.norm.*", "head.layernorm.*"),
            ("attn_pool.mlp.fc1.*", "head.mlp.fc1.*"),
            ("attn_pool.mlp.fc2.*", "head.mlp.fc2.*"),
            *(
                (f"attn_pool.{name}.{kind}", f"head.attention.in_proj_{kind}", form)
                for kind in ("weight", "bias")
                for name, form in {
                    "q": Form(lambda parts: parts[0].chunk(3)[0], SAME.write),
                    "kv": Form(lambda parts: parts[0][len(parts[0]) // 3 :], SAME.write),
                }.items()
            ),
            ("head.*", "classifier.*"),
        ]
    ),
    assumes={"norm_eps": 1e-6, "mlp": "gelu_tanh"},
    ignored=r"embeddings\.position_ids",
)

TORCHVISION = Origin(
    name="torchvision",
    class_row=True,
    anchor="conv_proj.weight",
    table=rows(
        [
            ("cls_token", "class_token"),
            ("pos_embed", "encoder.pos_embedding"),
            ("patch_embed.proj.*", "conv_proj.*"),
            ("blocks.#.norm1.*", "encoder.layers.encoder_layer_#.ln_1.*"),
            ("blocks.#.attn.qkv.weight", "encoder.layers.encoder_layer_#.self_attention.in_proj_weight"),
            ("blocks.#.attn.qkv.bias", "encoder.layers.encoder_layer_#.self_attention.in_proj_bias"),
            ("blocks.#.attn.proj.*", "encoder.layers.encoder_layer_#.self_attention.out_proj.*"),
            ("blocks.#.norm2.*", "encoder.layers.encoder_layer_#.ln_2.*"),
            ("blocks.#.mlp.fc1.*", "encoder.layers.encoder_layer_#.mlp.0.*"),
            ("blocks.#.mlp.fc1.*", "encoder.layers.encoder_layer_#.mlp.linear_1.*"),
            ("blocks.#.mlp.fc2.*", "encoder.layers.encoder_layer_#.mlp.3.*"),
            ("blocks.#.mlp.fc2.*", "encoder.layers.encoder_layer_#.mlp.linear_2.*"),
            ("norm.*", "encoder.ln.*"),
            ("pre_logits.fc.*", "heads.pre_logits.*"),
            ("head.*", "heads.head.*"),
        ]
    ),
)


def google_blocks(*, attention: int, norm2: int, mlp: int) -> list[Line]:
    """The blocks' rows, with the numbers that flax gave their parts."""
    block = "Transformer/encoderblock_#"
    heads = f"{block}/MultiHeadDotProductAttention_{attention}"
    return [
        *flax_norm("blocks.#.norm1", f"{block}/LayerNorm_0"),
        ("blocks.#.attn.qkv.weight", tuple(f"{heads}/{x}/kernel" for x in ("query", "key", "value")), FLAX_HEADS),
        ("blocks.#.attn.qkv.bias", tuple(f"{heads}/{x}/bias" for x in ("query", "key", "value")), FLAX_HEADS_BIAS),
        *flax("blocks.#.attn.proj", f"{heads}/out", FLAX_OUT),
        *flax_norm("blocks.#.norm2", f"{block}/LayerNorm_{norm2}"),
        *flax("blocks.#.mlp.fc1", f"{block}/MlpBlock_{mlp}/Dense_0", TRANSPOSED),
        *flax("blocks.#.mlp.fc2", f"{block}/MlpBlock_{mlp}/Dense_1", TRANSPOSED),
    ]


GOOGLE_STEM: list[Line] = [
    ("cls_token", "cls"),
    *flax("patch_embed.proj", "embedding", FLAX_CONV),
    *flax_norm("norm", "Transformer/encoder_norm"),
    *flax("pre_logits.fc", "pre_logits", TRANSPOSED),
    *flax("head", "head", TRANSPOSED),
]

GOOGLE = Origin(
    name="Google vision_transformer",
    class_row=True,
    anchor="embedding/kernel",
    table=rows(
        [
            ("pos_embed", "Transformer/posembed_input/pos_embedding"),
            *GOOGLE_STEM,
            *google_blocks(attention=1, norm2=2, mlp=3),
        ]
    ),
    assumes={"mlp": "gelu_tanh"},  # flax's gelu, unless told otherwise
)

MAP_HEADS = "MAPHead_0/MultiHeadDotProductAttention_0"
BIG_VISION = Origin(
    name="Google big_vision",
    anchor="embedding/kernel",
    table=rows(
        [
            ("pos_embed", "pos_embedding"),
            *GOOGLE_STEM,
            *google_blocks(attention=0, norm2=1, mlp=0),
            ("attn_pool.latent", "MAPHead_0/probe"),
            ("attn_pool.q.weight", f"{MAP_HEADS}/query/kernel", FLAX_HEADS),
            ("attn_pool.q.bias", f"{MAP_HEADS}/query/bias", FLAX_HEADS_BIAS),
            ("attn_pool.kv.weight", tuple(f"{MAP_HEADS}/{x}/kernel" for x in ("key", "value")), FLAX_HEADS),
            ("attn_pool.kv.bias", tuple(f"{MAP_HEADS}/{x}/bias" for x in ("key", "value")), FLAX_HEADS_BIAS),
            *flax("attn_pool.proj", f"{MAP_HEADS}/out", FLAX_OUT),
            *flax_norm("attn_pool.norm", "MAPHead_0/LayerNorm_0"),
            *flax("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0", TRANSPOSED),
            *flax("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1", TRANSPOSED),
        ]
    ),
    assumes={"mlp": "gelu_tanh"},
    computes_positions=True,
    class_row=False,
)

CLIP = Origin(
    name="CLIP",  # OpenAI's and open_clip's visual tower
    class_row=True,
    anchor="conv1.weight",
    table=rows(
        [
            ("cls_token", "class_embedding", TOKEN),
            ("pos_embed", "positional_embedding", TOKENS),
            ("patch_embed.proj.*", "conv1.*"),
            ("norm_pre.*", "ln_pre.*"),
            ("blocks.#.norm1.*", "transformer.resblocks.#.ln_1.*"),
            ("blocks.#.attn.qkv.weight", "transformer.resblocks.#.attn.in_proj_weight"),
            ("blocks.#.attn.qkv.bias", "transformer.resblocks.#.attn.in_proj_bias"),
            ("blocks.#.attn.proj.*", "transformer.resblocks.#.attn.out_proj.*"),
            ("blocks.#.ls1.gamma", "transformer.resblocks.#.ls_1.gamma"),
            ("blocks.#.norm2.*", "transformer.resblocks.#.ln_2.*"),
            ("blocks.#.mlp.fc1.*", "transformer.resblocks.#.mlp.c_fc.*"),
            ("blocks.#.mlp.fc2.*", "transformer.resblocks.#.mlp.c_proj.*"),
            ("blocks.#.ls2.gamma", "transformer.resblocks.#.ls_2.gamma"),
            ("norm.*", "ln_post.*"),
            ("head.weight", "proj", TRANSPOSED),
        ]
    ),
    assumes={"norm_eps": 1e-5},
)

CLIPA = Origin(
    name="CLIPA",  # open_clip's towers without ln_pre: the norm stands behind the mean of the tokens
    anchor="conv1.weight",
    table=tuple(
        row._replace(ours=row.ours.replace("norm.", "fc_norm.")) if row.ours.startswith("norm.") else row
        for row in CLIP.table
        if not row.ours.startswith("norm_pre")
    ),
    assumes=CLIP.assumes,
)

VIT_PYTORCH_TABLE = rows(
    [
        ("cls_token", "cls_token", TOKENS),
        ("pos_embed", "pos_embedding", TOKENS),
        ("patch_embed.pixel_norm.*", "to_patch_embedding.1.*", PIXEL_NORM),
        ("patch_embed.proj.weight", "to_patch_embedding.2.weight", LINEAR_PATCH),
        ("patch_embed.proj.bias", "to_patch_embedding.2.bias"),
        ("patch_embed.norm.*", "to_patch_embedding.3.*"),
        ("blocks.#.norm1.*", "transformer.layers.#.0.norm.*"),
        ("blocks.#.attn.qkv.weight", "transformer.layers.#.0.to_qkv.weight"),
        ("blocks.#.attn.proj.*", "transformer.layers.#.0.to_out.0.*"),
        ("blocks.#.attn.proj.*", "transformer.layers.#.0.to_out.*"),  # SimpleViT
        ("blocks.#.norm2.*", "transformer.layers.#.1.net.0.*"),
        ("blocks.#.mlp.fc1.*", "transformer.layers.#.1.net.1.*"),
        ("blocks.#.mlp.fc2.*", "transformer.layers.#.1.net.4.*"),
        ("blocks.#.mlp.fc2.*", "transformer.layers.#.1.net.3.*"),  # SimpleViT
        ("blocks.#.attn.qkv.weight", "transformer.layers.#.0.fn.to_qkv.weight"),  # before 1.2, norms stood around the layers
        ("blocks.#.attn.proj.*", "transformer.layers.#.0.fn.to_out.0.*"),
        ("blocks.#.norm2.*", "transformer.layers.#.1.norm.*"),
        ("blocks.#.mlp.fc1.*", "transformer.layers.#.1.fn.net.0.*"),
        ("blocks.#.mlp.fc2.*", "transformer.layers.#.1.fn.net.3.*"),
        ("norm.*", "transformer.norm.*"),
        ("fc_norm.*", "mlp_head.0.*"),
        ("fc_norm.*", "linear_head.0.*"),
        ("head.*", "mlp_head.*"),
        ("head.*", "mlp_head.1.*"),
        ("head.*", "linear_head.*"),
        ("head.*", "linear_head.1.*"),
    ]
)

VIT_PYTORCH = Origin(
    name="vit-pytorch",
    anchor="to_patch_embedding.2.weight",
    table=VIT_PYTORCH_TABLE,
    assumes={"norm_eps": 1e-5, "head_dim": 64},
    computes_positions=True,
)

OLD_VIT_PYTORCH = Origin(
    name="vit-pytorch before 1.0",
    anchor="to_patch_embedding.1.weight",
    table=(
        *rows(
            [
                ("patch_embed.proj.weight", "to_patch_embedding.1.weight", LINEAR_PATCH),
                ("patch_embed.proj.bias", "to_patch_embedding.1.bias"),
            ]
        ),
        *(row for row in VIT_PYTORCH_TABLE if not row.ours.startswith("patch_embed")),
    ),
    assumes=VIT_PYTORCH.assumes,
    computes_positions=True,
)

ORIGINS = (
    TIMM,
    OURS,  # the same names, and those of parts that timm does not have
    DINOV2,
    EVA,
    TRANSFORMERS,
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_SIGLIP,
    TRANSFORMERS_CLIP,
    TORCHVISION,
    GOOGLE,
    BIG_VISION,
    CLIPA,
    CLIP,
    VIT_PYTORCH,
    OLD_VIT_PYTORCH,
)


# --------------------------------------------------------------------------------------------------------------------
# Reading a file's names


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours comes from: names in the file, and the form they have there."""

    theirs: tuple[str, ...]
    form: Form

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor, made when it is asked for."""
        return self.form.read([tensors[name] for name in self.theirs])


@dataclass(frozen=True)
class Recognised:
    """A file's names, read."""

    origin: Origin
    prefix: str
    """What a wrapper put before the model's names."""
    sources: Mapping[str, Source]
    """By our names."""
    foreign: tuple[str, ...]
    """Names inside the encoder that no row explains: the model is not a plain ViT."""
    outside: tuple[str, ...]
    """Names that belong to other parts: heads of pre-training, text towers, decoders."""
    others: tuple[str, ...]
    """Prefixes of further encoders in the same file."""

    def shapes(self, theirs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes of our tensors from those of the file's, found out on the meta device."""
        here = {name: torch.empty(theirs[name], device="meta") for s in self.sources.values() for name in s.theirs}
        made: dict[str, tuple[int, ...]] = {}
        for ours, source in self.sources.items():
            try:
                made[ours] = tuple(source.read(here).shape)
            except (RuntimeError, IndexError) as error:
                given = ", ".join(f"{name} of {'x'.join(map(str, theirs[name]))}" for name in source.theirs)
                raise ValueError(f"this {self.origin.name} checkpoint has {given}, which makes no {ours}") from error
        return made

    def heads(self, theirs: Mapping[str, tuple[int, ...]]) -> int | None:
        """The number of heads, where the file has an axis for them, as flax has."""
        source = self.sources.get("blocks.0.attn.qkv.weight")
        return theirs[source.theirs[0]][1] if source is not None and source.form is FLAX_HEADS else None


WRAPPERS = r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
ENCODER = (
    r"(blocks|layers?|encoder|[Tt]ransformer|\w*embed|conv|stem|bn|ln_|norm|pre_layer|post_layer|cls|class|pos|reg|attn|rope"
    r"|rotary|freq|.*(relative_position|rel_pos))"
)
AVERAGED = r"(teacher|ema(?![a-z])|target)"  # not MoCo's momentum encoder: its own code takes the other one


def unstack(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """big_vision's scanned blocks, which are one array with an axis for the depth, as one block each (views)."""
    scanned = [name for name in tensors if "/encoderblock/" in name]
    if not scanned:
        return tensors
    made = {name: tensors[name] for name in tensors if name not in scanned}
    for name in scanned:
        made |= {name.replace("/encoderblock/", f"/encoderblock_{i}/"): part for i, part in enumerate(tensors[name])}
    return made


def recognise(names: Iterable[str], origins: Iterable[Origin] | None = None) -> Recognised:
    """The origin whose table explains the names best. Raises ValueError where none explains patch embedding and blocks."""
    origins = ORIGINS if origins is None else tuple(origins)
    spelled = {re.sub(WRAPPERS, "", name): name for name in names}
    found = [
        _read(origin, name[: len(name) - len(origin.anchor)], spelled)
        for origin in origins
        for name in spelled
        if name == origin.anchor or name.endswith((f".{origin.anchor}", f"/{origin.anchor}"))
    ]
    found = [one for one in found if any(ours.startswith("blocks.") for ours in one.sources)]
    if not found:
        shown = ", ".join(sorted(spelled)[:3])
        raise ValueError(
            f"no plain ViT is in these {len(spelled)} tensors ({shown}…): patch embedding and blocks are not named as by "
            f"{', '.join(dict.fromkeys(origin.name.split(' ')[0] for origin in ORIGINS))}; "
            "give a plain ViT's, or name another library's model, as in timm:resnet50"
        )
    preferred = max(found, key=lambda one: (bool(re.search(AVERAGED, one.prefix)), len(one.sources), -len(one.foreign)))
    others = dict.fromkeys(one.prefix for one in found if one.prefix != preferred.prefix)
    return Recognised(**{**preferred.__dict__, "others": tuple(others)})


def _read(origin: Origin, prefix: str, spelled: Mapping[str, str]) -> Recognised:
    """The names behind a prefix, by one origin's table."""
    inside: dict[str, str] = {}
    for name, actual in spelled.items():
        if name.startswith(prefix):
            inside[_right(name[len(prefix) :], origin)] = actual
    around = dict(inside)  # a head stands beside the encoder, at any level above it
    for name, actual in spelled.items():
        if not name.startswith(prefix):
            for level in _levels(prefix):
                if name.startswith(level):
                    around.setdefault(_right(name[len(level) :], origin), actual)
    sources: dict[str, Source] = {}
    used: set[str] = set()
    whole = any(_numbers(row.theirs[0], inside) for row in origin.table if row.ours == "blocks.#.attn.qkv.weight")
    for row in origin.table:  # transformers 5 writes the blocks of ViTMSNForImageClassification beside its embedding
        names = around if row.ours.startswith(("head",) if whole else ("head", "blocks.")) else inside
        for number in _numbers(row.theirs[0], names):
            ours = row.ours.replace("#", number)
            parts = [part.replace("#", number) for part in row.theirs]
            if ours not in sources and all(part in names for part in parts):
                sources[ours] = Source(tuple(names[part] for part in parts), row.form)
                used.update(names[part] for part in parts)
    if "dist_token" in sources and "head.weight" in sources and "head_dist.weight" not in sources:
        sources["reg_token"] = sources.pop("dist_token")  # without a head of its own it is a register
    left = {short: actual for short, actual in inside.items() if actual not in used}
    ignored = [short for short in left if re.match(origin.ignored, short)]
    foreign = [short for short in left if short not in ignored and re.match(ENCODER, short)]
    outside = [actual for actual in spelled.values() if actual not in used and actual not in {left[s] for s in foreign}]
    return Recognised(origin, prefix, sources, tuple(left[s] for s in foreign), tuple(outside), ())


def _right(name: str, origin: Origin) -> str:
    """A name with the origin's spellings put right."""
    for pattern, right in origin.spellings:
        name = re.sub(pattern, right, name)
    return name


def _levels(prefix: str) -> list[str]:
    """The prefix without its last part, without its last two, … the nearest first: "a.b." gives "a." and ""."""
    parts = re.findall(r"[^./]+[./]", prefix)
    return ["".join(parts[:count]) for count in reversed(range(len(parts)))]


def _numbers(pattern: str, names: Mapping[str, str]) -> list[str]:
    """The block numbers that a pattern finds; one empty number for a pattern without "#"."""
    if "#" not in pattern:
        return [""]
    head, tail = pattern.split("#")
    found = (name[len(head) : -len(tail)] for name in names if name.startswith(head) and name.endswith(tail))
    return [number for number in found if number.isdecimal()]
