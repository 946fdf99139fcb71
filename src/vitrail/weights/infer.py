"""Infer a model's config from the shapes of its tensors, its config.json and the caller's overrides.

What none of them determines is asked for in one line, never guessed: a wrong number of heads loads without an error and
computes nonsense. If a published family determines it, that value is taken and listed in the receipt.
"""

# D width · L patches · P patch · h heads · d = D / h

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vitrail.settings import Pair, ViTConfig, pair
from vitrail.text import printable_errors
from vitrail.weights.libraries import LIBRARIES
from vitrail.weights.library import Config, Evidence, Layout, Question, Shapes, from_list
from vitrail.weights.recognise import Recognised

WIDE_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}
"""Heads at published widths, where they are not 64 wide: So400m, H, g, G, E (Zhai et al. 2022; Alabdulmohsin et al. 2023)."""

AXES = {
    "patch_embed.proj.weight": 4,
    **{f"blocks.0.{part}.weight": 2 for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
    "head.weight": 2,
    "reg_token": 3,
}
"""Number of axes of the tensors that are read for their shape. A convolution over frames has five."""

REASONS = (  # patterns of names that a plain ViT does not have, and what they indicate
    (
        r"patch_embed\.backbone|embedder|resnetv2|conv_root|root_block|bit\.",
        "a convolutional network stands before the patches (hybrid)",
    ),
    (r"relative_position|rel_pos|shared_position_bias", "attention has relative position biases"),
    (r"rope|rotary|freqs|periods", "positions are rotary"),
    (r"attns\.|ffns\.|in_proj\.|mlp_out_proj", "attention and MLP run side by side (parallel blocks)"),
    (r"lambda_[qk]\d|sub_norm", "attention is differential"),
    (r"attn\.norm|mlp\.norm|inner_attn_ln|ffn_layernorm", "norms stand inside attention and MLP (sub-LN)"),
    (r"fc1_[gx]|w1\.|w2\.", "its gated MLP keeps gate and value apart"),
    (r"vit_merger", "tokens are merged between its blocks"),
    (r"attn_pool", "its attention pooling is another one"),
)


class OpenQuestions(ValueError):
    """Neither tensors nor config determine some fields; the message asks for all of them in one line."""

    def __init__(self, questions: Sequence[Question]) -> None:
        super().__init__("the tensors do not tell " + "; nor ".join(map(str, questions)))
        self.questions = tuple(questions)


@dataclass(frozen=True)
class Inferred:
    """The model in a file."""

    config: ViTConfig
    grid: Pair
    """Grid of the position embedding."""
    positions_for: tuple[str, ...]
    """Prefix tokens that have a row in it: of cls, dist, reg."""
    assumed: tuple[str, ...]
    """Assumptions, as published, about fields that no tensor determines, for the receipt."""
    grid_source: str = ""
    """The grid and where it comes from, for the receipt; "" for a model whose config states everything."""


def refuse_foreign(match: Recognised) -> None:
    """Raise ValueError if the encoder has tensors that a plain ViT does not have."""
    if not match.foreign:
        return
    names = " ".join(match.foreign)
    reason = next((why for pattern, why in REASONS if re.search(pattern, names)), "its code computes something else with them")
    shown = ", ".join(match.foreign[:2]) + (f" and {len(match.foreign) - 2} more" if len(match.foreign) > 2 else "")
    raise ValueError(
        f"this {match.layout.name} checkpoint is not a plain ViT: {shown}: {reason}; open it with its own library, "
        "or give strict=False to drop them"
    )


def infer(shapes: Shapes, layout: Layout, *, config: Config, overrides: Mapping[str, Any], prefix: str = "") -> Inferred:
    """Infer the config of the model in a file.

    `shapes` are by our names; `config` is the config.json beside the file, {} if there is none; `overrides` are fields that
    the caller states, and answer questions; `prefix` precedes the names in the file. Raises ValueError for tensors of no
    plain ViT and, naming the answers, for what nothing determines.
    """
    refuse_shapes(shapes, layout)
    stated = config_fields(config)
    known = {**stated, **{name: value for name, value in overrides.items() if value is not None}}
    fields = fields_of(shapes, layout, config) | {name: value for name, value in stated.items() if name in STATED}
    if gated := is_gated(shapes):
        fields["mlp"] = "swiglu"
    evidence = Evidence(shapes, fields, known, config)
    heads = heads_of(evidence, layout, prefix)
    fields |= {
        "num_heads": heads.number,
        "head_dim": None if heads.width * heads.number == fields["embed_dim"] else heads.width,
    }
    questions = [*heads.questions, *gelu_questions(evidence, layout), *layout.questions(evidence)]
    questions += position_questions(evidence, layout)
    if fields["pool"] == "map" and fields["reg_tokens"] and "pool_include_prefix" not in known:
        why = "whether attention pooling looks at the registers"
        questions.append(Question("pool_include_prefix", why, (False, True)))
    positions, mismatch = None, None
    try:
        positions = positions_of(evidence, stated, overrides, class_row=layout.class_row)
        questions += positions.questions
    except ValueError as error:
        mismatch = error
    if questions:  # first what can be answered
        raise OpenQuestions(questions)
    if positions is None:
        assert mismatch is not None
        raise mismatch
    grid, prefix_rows, patch = positions.grid, positions.positions_for, pair(fields["patch_size"])
    fields |= {name: overrides[name] for name in ("norm_eps", "pool", "pool_include_prefix") if name in overrides}
    if "mlp" in overrides and not gated:
        fields["mlp"] = overrides["mlp"]
    fields["no_embed_class"] = fields["class_token"] and "cls" not in prefix_rows
    fields["pos_embed"] = "learn" if "pos_embed" in shapes or layout.computes_positions else "none"
    fields["img_size"] = (grid[0] * patch[0], grid[1] * patch[1])
    assumed = [*heads.assumed, *layout.assumptions(evidence._replace(fields=fields))]
    assumed += [text for library in LIBRARIES.values() for text in library.config_assumptions(config)]
    return Inferred(ViTConfig(**fields), grid, prefix_rows, tuple(assumed), f"{grid[0]}x{grid[1]} patches: {positions.source}")


@printable_errors()
def config_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ViTConfig that a config.json states and tensors do not. Raises ValueError for invalid ones."""
    try:
        fields: dict[str, Any] = next(filter(None, (library.fields(config) for library in LIBRARIES.values())), {})
        sides = pair(fields.get("img_size", 1))
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"config.json is not as its library writes it ({reason}); mend it, or leave it out") from error
    values = {"img_size": min(sides), "num_heads": fields.get("num_heads", 1), "norm_eps": fields.get("norm_eps", 1)}
    for name, value in values.items():
        if not isinstance(value, int | float) or value <= 0 or (name == "num_heads" and value != int(value)):
            raise ValueError(f"config.json has {name} {value}, which can't be; mend it, or leave it out")
    if fields.get("pool", "cls") not in ("cls", "avg", "map"):
        raise ValueError(f"its pooling {fields['pool']!r} is none of a plain ViT's: class token, mean, attention")
    return fields


STATED = ("mlp", "norm_eps", "pool", "pool_include_prefix")
"""Fields of the model in a file that config.json may state. Its other fields are determined by tensors too, or asked for."""


# --------------------------------------------------------------------------------------------------------------------
# Shapes


def refuse_shapes(shapes: Shapes, layout: Layout) -> None:
    """Raise ValueError for tensors that are not those of a whole plain ViT."""
    this = f"this {layout.name} checkpoint"
    for name, axes in AXES.items():
        if name not in shapes and name not in ("head.weight", "reg_token"):
            raise ValueError(f"{this} has nothing for {name}, so it is not a whole plain ViT")
        shape = shapes.get(name, (1,) * axes)
        if len(shape) != axes or 0 in shape:
            raise ValueError(f"{this} is not a plain ViT: {name} is {'x'.join(map(str, shape))}, and not of {axes} axes")
    dim, table = shapes["patch_embed.proj.weight"][0], shapes.get("pos_embed")
    if table is not None and (not 2 <= len(table) <= 4 or table[-1] != dim or 0 in table):
        raise ValueError(f"{this} is not a plain ViT: pos_embed is {'x'.join(map(str, table))}, and its tokens are {dim} wide")
    for name in shapes:
        if "norm" in name and name.endswith(".weight") and f"{name.removesuffix('weight')}bias" not in shapes:
            why = f"{name} comes without a bias, as in RMSNorm"
            raise ValueError(f"{this} is not a plain ViT: {why}; open it with its own library")
    depth = depth_of(shapes)
    missing = [i for i in range(depth) if f"blocks.{i}.attn.qkv.weight" not in shapes]
    if missing:
        raise ValueError(f"{this} has {depth} blocks, but nothing for block {missing[0]}; it is not whole")
    hidden = shapes.get("pre_logits.fc.weight", (1, 1))
    if hidden[0] != hidden[-1]:
        why = f"the hidden layer of its head is {hidden[0]} wide, not {hidden[-1]} as its tokens"
        raise ValueError(f"{this} has another head: {why}; leave the head out of the state dict, and give num_classes")
    if {"norm.weight", "fc_norm.weight"} <= shapes.keys():
        raise ValueError(f"{this} is not a plain ViT: one norm stands before the pooling and one behind it")


def depth_of(shapes: Shapes) -> int:
    """Return the number of blocks."""
    return 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))


def is_gated(shapes: Shapes) -> bool:
    """Return whether the first layer of the MLP has twice as many outputs as the second has inputs: SwiGLU."""
    return shapes["blocks.0.mlp.fc1.weight"][0] == 2 * shapes["blocks.0.mlp.fc2.weight"][1]


def fields_of(shapes: Shapes, layout: Layout, config: Config) -> dict[str, Any]:
    """Return the fields of ViTConfig that the shapes determine, and those that the layout's code fixes."""
    dim, channels, *patch = shapes["patch_embed.proj.weight"]
    cls = bool(math.prod(shapes.get("cls_token", (0,))))
    head = shapes.get("head.weight", (0, dim))
    if head[1] not in (dim, 2 * dim):  # of another module, behind a projector
        head = (0, dim)
    fields: dict[str, Any] = {
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "in_channels": channels,
        "num_classes": head[0],
        "embed_dim": dim,
        "depth": depth_of(shapes),
        "mlp_ratio": shapes["blocks.0.mlp.fc2.weight"][1] / dim,
        "mlp": "gelu",
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        "norm_eps": 1e-5 if "norm_pre.weight" in shapes else 1e-6,
        "pre_norm": "norm_pre.weight" in shapes,
        "patch_norm": "patch_embed.pixel_norm.weight" in shapes,
        "final_norm": "norm.weight" in shapes or "fc_norm.weight" in shapes,
        "fc_norm": "fc_norm.weight" in shapes,
        "class_token": cls,
        "dist_token": "dist_token" in shapes,
        "reg_tokens": shapes["reg_token"][1] if "reg_token" in shapes else 0,
        "head": "mlp" if "pre_logits.fc.weight" in shapes else "linear",
        "stem": "conv" if any(name.startswith("patch_embed.stem") for name in shapes) else "patch",
    }
    if "attn_pool.latent" in shapes:
        fields["pool"] = "map"
    elif head[1] == 2 * dim:
        fields["pool"] = "cls+avg"
    else:
        fields["pool"] = "avg" if fields["fc_norm"] or not cls else "cls"
    fields |= layout.adjust(Evidence(shapes, fields, {}, config))
    return fields | {name: value for name, value in layout.assumes.items() if name != "head_dim"}


# --------------------------------------------------------------------------------------------------------------------
# What shapes leave open


class Heads(NamedTuple):
    """Number and width of the attention heads."""

    number: int
    width: int
    assumed: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()


def heads_of(evidence: Evidence, layout: Layout, prefix: str) -> Heads:
    """Return the heads: as stated, as a tensor shows them, or as published at this width; else with a question.

    Raises ValueError for a stated number that does not divide the attention's width.
    """
    shapes, fields, known, _ = evidence
    dim, inner = fields["embed_dim"], shapes["blocks.0.attn.qkv.weight"][0] // 3
    if "num_heads" in known:
        heads = int(known["num_heads"])
        if heads < 1 or inner % heads:
            raise ValueError(f"num_heads {heads} does not divide the attention's width {inner}")
        return Heads(heads, inner // heads)
    width = shapes.get("blocks.0.attn.q_norm.weight", (inner,))[0]
    if width < inner:
        return Heads(inner // width, width)
    heads, fixed = 0, layout.assumes.get("head_dim")
    if "heads" in known:  # the file has an axis for them
        heads = known["heads"]
    elif not layout.published:
        several = tuple(heads for heads in (2, 3, 4, 6, 8, 12, 16) if inner % heads == 0 and inner // heads >= 8)
        return open_heads(inner, f"its code has them for a width of {inner}", several[:4] or (1,))
    elif fixed:
        heads = inner // fixed if inner % fixed == 0 else 0
    elif inner == dim and dim in WIDE_HEADS:
        heads = WIDE_HEADS[dim]
    elif dim == 1536:  # DINOv2's g has 24 heads, SigLIP's giantopt 16
        heads = 24 if fields["class_token"] else 16
    elif dim == 768 and fields["pool"] == "avg" and not fields["class_token"] and not fields["reg_tokens"]:
        return open_heads(inner, "12 in SigLIP, 16 in timm's vit_base_patch16_gap_224", (12, 16))
    elif dim == 384 and re.search(r"(base|momentum)_encoder", prefix):
        return open_heads(inner, "12 in MoCo v3, 6 in all others of this width", (12, 6))
    elif inner == dim and 192 <= dim <= 1024 and dim % 64 == 0:
        heads = dim // 64
    if not heads:
        several = tuple(heads for heads in (2, 4, 8, 16) if inner % heads == 0) or (1,)
        return open_heads(inner, f"width {inner} is not that of a published family", several)
    return Heads(heads, inner // heads, assumed=(f"{heads} heads, as published at width {dim}",) if layout.published else ())


def open_heads(inner: int, why: str, answers: tuple[int, ...]) -> Heads:
    """Ask for the number of heads."""
    return Heads(1, inner, questions=(Question("num_heads", why, answers),))


def gelu_questions(evidence: Evidence, layout: Layout) -> Iterator[Question]:
    """Ask for the form of GELU of CLIP's and SigLIP's towers, whose tensors are the same for several."""
    fields = evidence.fields
    if "mlp" in evidence.known or fields["mlp"] == "swiglu":
        return
    bare = not fields["class_token"] and not fields["reg_tokens"] and fields["init_values"] is None and fields["qkv_bias"]
    if fields["pre_norm"]:
        yield Question("mlp", "OpenAI's CLIP has quick_gelu, most of open_clip's gelu", ("quick_gelu", "gelu"))
    elif layout.mixed_gelu and bare and not fields["fc_norm"]:
        yield Question("mlp", "SigLIP has gelu_tanh in some sizes of timm and gelu in others", ("gelu", "gelu_tanh"))


# --------------------------------------------------------------------------------------------------------------------
# Positions


def position_questions(evidence: Evidence, layout: Layout) -> Iterator[Question]:
    """Ask about a file without positions: they are fixed ones of any size, or rotary."""
    if "pos_embed" in evidence.shapes:
        return
    if layout.computes_positions:
        if "img_size" not in evidence.known:
            yield Question("img_size", "its positions are computed, so no tensor shows the grid", (224, 256))
    elif "pos_embed" not in evidence.known and layout.needs_positions(evidence):
        why = "no positions are in the file: DINOv3's (rope='centred') and RoPE-ViT's (rope='grid') are rotary"
        yield Question("pos_embed", f"{why}; if yours has no others", ("none",))


@dataclass(frozen=True)
class PositionGrid:
    """Arrangement of the rows of a position embedding on the image."""

    grid: Pair
    positions_for: tuple[str, ...]
    """Prefix tokens that have a row: of cls, dist, reg."""
    source: str
    """Source of the grid, for the receipt."""
    questions: tuple[Question, ...] = ()


def positions_of(
    evidence: Evidence, stated: Mapping[str, Any], overrides: Mapping[str, Any], *, class_row: bool | None
) -> PositionGrid:
    """Return the grid of the position embedding, and which prefix tokens have a row in it.

    The rows show the number of patches, not their arrangement. Taken are, in this order: the image size that the model or its
    config.json states, the size that the caller asks for, a square; each only if it has as many patches as there are rows.
    Raises ValueError if none has.
    """
    shapes, fields = evidence.shapes, evidence.fields
    patch = pair(fields["patch_size"])
    new_patch = patch if overrides.get("patch_size") is None else pair(from_list(overrides["patch_size"]))
    own = grid_at(stated.get("img_size"), patch)
    requested = grid_at(overrides.get("img_size"), new_patch)  # larger patches on a larger image: the same grid
    prefix = ("cls",) * fields["class_token"] + ("dist",) * fields["dist_token"]
    if "pos_embed" not in shapes:
        source = "of img_size" if requested else "of its config" if own else "assumed, of 224 px"
        return PositionGrid(requested or own or (224 // patch[0], 224 // patch[1]), prefix, source)
    table = shapes["pos_embed"]
    if len(table) == 4:
        return PositionGrid((table[1], table[2]), (), "of the file's position embedding")
    arrangements = list(dict.fromkeys([prefix, (), prefix + ("reg",) * fields["reg_tokens"]]))
    if prefix and class_row is not None:
        arrangements = [tokens for tokens in arrangements if bool(tokens) == class_row]

    def tokens_at(grid: Pair) -> tuple[str, ...] | None:
        return next((tokens for tokens in arrangements if table[-2] == grid[0] * grid[1] + len(tokens)), None)

    sides = [math.isqrt(max(0, table[-2] - len(tokens))) for tokens in arrangements]
    squares = [(side, side) for side in sides if side and tokens_at((side, side)) is not None]
    if own and (tokens := tokens_at(own)) is not None:
        return PositionGrid(own, tokens, "of its own size")
    if requested and (tokens := tokens_at(requested)) is not None:
        others = [f"{side}x{side}" for side, _ in squares if (side, side) != requested]
        note = f", though a square of {others[0]} has as many rows" if others else ""
        return PositionGrid(requested, tokens, f"of the img_size that is asked for{note}")
    if not squares:
        raise ValueError(
            f"the position embedding has {table[-2]} rows, which make no square; give img_size=(height, width) of the model in "
            f"it, whose grid at patch {patch[0]} has {table[-2] - len(prefix)} patches, load, and change the size after that"
        )
    grid, tokens = squares[0], tokens_at(squares[0])
    assert tokens is not None
    questions = () if tokens or class_row is not None else rectangle_questions(grid, table[-2], prefix, fields)
    source = "assumed, a square: no size is in the file and none that fits is asked for"
    return PositionGrid(grid, tokens, source, tuple(questions))


def grid_at(size: Any, patch: Pair) -> Pair | None:
    """Return the grid of an image size, which may be one side; None without a size."""
    if size is None:
        return None
    height, width = pair(from_list(size))
    return height // patch[0], width // patch[1]


def rectangle_questions(grid: Pair, rows: int, prefix: tuple[str, ...], fields: Mapping[str, Any]) -> Iterator[Question]:
    """Ask about a square that leaves the class token without a row: it may be a rectangle with one.

    225 rows are 15 x 15, or 14 x 16 and a class token. Of DeiT III and of models with registers only the first is published.
    """
    published = fields["init_values"] is not None or fields["reg_tokens"] or fields["dist_token"]
    if prefix and not published and grid[0] > 1:
        patch, other = pair(fields["patch_size"]), (grid[0] - 1, grid[1] + 1)
        why = (
            f"{rows} rows of positions are {grid[0]}x{grid[1]} patches and no row for the class token, as in FlexiViT, "
            f"or {rows - len(prefix)} patches and one, as in {other[0]}x{other[1]}; the file's size, changed later"
        )
        yield Question("img_size", why, tuple((height * patch[0], width * patch[1]) for height, width in (grid, other)))
