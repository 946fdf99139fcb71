"""The shape of a model from its tensors alone, its config.json where there is one, and what the user says.

What neither tells is asked for in one line, never guessed: a wrong number of heads loads without an error and computes
nonsense. Where a published family settles it, the answer is taken and the receipt says so.
"""

# D width · L patches · P patch · h heads · d = D / h

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.config import Pair, ViTConfig, pair
from vitrail.text import printable_errors
from vitrail.weights.origins import Origin, Recognised

Shapes = Mapping[str, tuple[int, ...]]

WIDE_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}
"""Published widths whose heads are not 64 wide: So400m, H, g, G, E (Zhai et al. 2022; Alabdulmohsin et al. 2023)."""

AXES = {
    "patch_embed.proj.weight": 4,
    **{f"blocks.0.{part}.weight": 2 for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
    "head.weight": 2,
    "reg_token": 3,
}
"""Of the tensors that are read for their shape. A convolution over frames has five."""

ACTIVATIONS = {  # what config files call it
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
}

TIMM_NAMES: tuple[tuple[str, dict[str, Any]], ...] = (  # what an architecture's name says that its tensors do not
    (r"_clip_quickgelu_", {"mlp": "quick_gelu"}),
    (r"_clip_", {"mlp": "gelu"}),
    (r"(base_patch32|so400m_patch16|giantopt_patch16)_siglip|large_patch16_siglip_(gap_)?512", {"mlp": "gelu_tanh"}),
    (r"siglip|_gap_|_map_", {"mlp": "gelu"}),
    (r"^vit_base_patch16_gap_224$", {"num_heads": 16}),
    (r"_map_", {"pool_include_prefix": False}),
    (r"^test_vit2?$", {"num_heads": 2}),
    (r"^test_vit[34]$", {"num_heads": 3}),
    (r"^test_vit3$", {"pool_include_prefix": True}),
    (r"^eva_giant_", {"pos_embed": "learn"}),
)

NO_PLAIN_VIT = (  # architectures of timm whose tensors look like a plain ViT's
    (r"_rpn_|^eva02_enormous", "its norms stand behind attention and MLP"),
    (r"rope|^eva02_|_dinov3|^vit_pe_|^qwen3_vit|^naflexvit_.*rope", "its positions are rotary"),
)

TRANSFORMERS_DEFAULTS: dict[str, dict[str, Any]] = {  # by model_type: what its files leave out where it is this
    **{kind: {"num_attention_heads": 12, "layer_norm_eps": 1e-12} for kind in ("vit", "vit_mae", "deit", "beit")},
    **{kind: {"num_attention_heads": 12, "layer_norm_eps": 1e-6} for kind in ("vit_msn", "dinov2", "dinov2_with_registers")},
    "clip_vision_model": {"num_attention_heads": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
    "siglip_vision_model": {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"},
}

PLAIN_KINDS = (  # transformers' model_type of the encoders whose code was compared (benchmarks/compatibility.py, the tests)
    *("vit", "vit_mae", "vit_msn", "deit", "beit", "data2vec-vision", "dinov2", "dinov2_with_registers", "ijepa", "clip"),
    *("clip_vision_model", "siglip", "siglip_vision_model", "owlvit_vision_model", "metaclip_2_vision_model"),
    *("chinese_clip_vision_model", "altclip_vision_model"),
)

REASONS = (  # a name that a plain ViT does not have, and what it is a sign of
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
    (r"attn_pool", "its attention pooling is another one"),
)


@dataclass(frozen=True)
class Question:
    """Something that the tensors do not tell."""

    field: str
    why: str
    answers: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.field} ({self.why}): give {' or '.join(f'{self.field}={answer!r}' for answer in self.answers)}"


@dataclass(frozen=True)
class Inferred:
    """The model in the file."""

    config: ViTConfig
    grid: Pair
    """Of its position embedding."""
    positions_for: tuple[str, ...]
    """The tokens before the patches that have a row in it: of cls, dist, reg."""
    assumed: tuple[str, ...]
    """What the receipt says was taken as published, since no tensor tells it."""
    grid_source: str = ""
    """The grid and where it comes from, for the receipt; "" for a model whose config says everything."""


def refuse_foreign(found: Recognised) -> None:
    """Raises ValueError where the encoder has tensors that a plain ViT does not have."""
    if not found.foreign:
        return
    names = " ".join(found.foreign)
    reason = next((why for pattern, why in REASONS if re.search(pattern, names)), "its code computes something else with them")
    shown = ", ".join(found.foreign[:2]) + (f" and {len(found.foreign) - 2} more" if len(found.foreign) > 2 else "")
    raise ValueError(
        f"this {found.origin.name} checkpoint is not a plain ViT: {shown}: {reason}; open it with its own library, "
        "or give strict=False to drop them"
    )


def infer(shapes: Shapes, origin: Origin, *, config: Mapping[str, Any], said: Mapping[str, Any], prefix: str = "") -> Inferred:
    """The config of the model in the file.

    `shapes` are by our names; `config` is the config.json beside the file, {} where there is none; `said` is what the user
    gave, and answers questions; `prefix` is what stands before the names in the file. Raises ValueError for tensors that
    make no plain ViT and, naming the answers, for what nothing tells.
    """
    refuse_shapes(shapes, origin)
    facts = facts_of(config)
    known = {**facts, **{name: value for name, value in said.items() if value is not None}}
    assumed: list[str] = []
    questions: list[Question] = []

    fields = fields_of(shapes, origin) | {name: value for name, value in facts.items() if name in TOLD}
    if gated := is_gated(shapes):
        fields["mlp"] = "swiglu"
    heads, head_dim = heads_of(shapes, origin, fields, known, prefix, assumed, questions)
    fields |= {"num_heads": heads, "head_dim": None if head_dim * heads == fields["embed_dim"] else head_dim}
    if not gated:
        ask_mlp(fields, origin, known, questions)
    ask_norms(fields, origin, config, known, questions)
    ask_positions(shapes, fields, origin, known, questions)
    if fields["pool"] == "map" and fields["reg_tokens"] and "pool_include_prefix" not in known:
        why = "whether attention pooling looks at the registers"
        questions.append(Question("pool_include_prefix", why, (False, True)))
    positions = positions_of(shapes, fields, facts, said, questions, class_row=origin.class_row)
    if questions:
        raise ValueError("the tensors do not tell " + "; nor ".join(map(str, questions)))
    grid, placed, patch = positions.grid, positions.positions_for, pair(fields["patch_size"])
    fields |= {name: said[name] for name in ("norm_eps", "pool", "pool_include_prefix") if name in said}
    if "mlp" in said and not gated:
        fields["mlp"] = said["mlp"]
    fields["no_embed_class"] = fields["class_token"] and "cls" not in placed
    fields["pos_embed"] = "learn" if "pos_embed" in shapes or origin.computes_positions else "none"
    fields["img_size"] = (grid[0] * patch[0], grid[1] * patch[1])
    assumed += assumptions(fields, origin, config, known)
    return Inferred(ViTConfig(**fields), grid, placed, tuple(assumed), f"{grid[0]}x{grid[1]} patches: {positions.source}")


def refuse_shapes(shapes: Shapes, origin: Origin) -> None:
    """Raises ValueError for tensors that make no whole plain ViT."""
    this = f"this {origin.name} checkpoint"
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


TOLD = ("mlp", "norm_eps", "pool", "pool_include_prefix")
"""Fields of the model in a file that a config.json may tell. Its other facts are said by tensors too, or asked for."""


def depth_of(shapes: Shapes) -> int:
    """The number of blocks."""
    return 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))


def is_gated(shapes: Shapes) -> bool:
    """Whether the first layer of the MLP is twice as wide as what the second takes: SwiGLU."""
    return shapes["blocks.0.mlp.fc1.weight"][0] == 2 * shapes["blocks.0.mlp.fc2.weight"][1]


def fields_of(shapes: Shapes, origin: Origin) -> dict[str, Any]:
    """Fields of ViTConfig that the shapes show, and those that the origin's code fixes."""
    dim, channels, *patch = shapes["patch_embed.proj.weight"]
    cls = bool(math.prod(shapes.get("cls_token", (0,))))
    head = shapes.get("head.weight", (0, dim))
    if head[1] not in (dim, 2 * dim):  # that of something else, behind a projector
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
        behind = fields["fc_norm"] and not origin.name.startswith("vit-pytorch")  # its last norm is always behind the pooling
        fields["pool"] = "avg" if behind or not cls else "cls"
    if origin.name == "transformers SigLIP" and "head.weight" in shapes:
        fields["pool"] = "avg"  # SiglipForImageClassification: the mean of the tokens, whatever pooling is in the file
    if origin.name == "transformers CLIP" and "norm.weight" in shapes and "head.bias" in shapes:
        fields |= {"pool": "avg", "final_norm": False}  # CLIPForImageClassification: the mean of tokens before the last norm
    return fields | {name: value for name, value in origin.assumes.items() if name != "head_dim"}


def heads_of(
    shapes: Shapes,
    origin: Origin,
    fields: Mapping[str, Any],
    known: Mapping[str, Any],
    prefix: str,
    assumed: list[str],
    questions: list[Question],
) -> tuple[int, int]:
    """Number and width of the heads."""
    dim, inner = fields["embed_dim"], shapes["blocks.0.attn.qkv.weight"][0] // 3
    if "num_heads" in known:
        heads = int(known["num_heads"])
        if heads < 1 or inner % heads:
            raise ValueError(f"num_heads {heads} does not divide the attention's width {inner}")
        return heads, inner // heads
    if "blocks.0.attn.q_norm.weight" in shapes and shapes["blocks.0.attn.q_norm.weight"][0] < inner:
        head_dim = shapes["blocks.0.attn.q_norm.weight"][0]
        return inner // head_dim, head_dim
    heads = 0
    if "heads" in known:  # Google's files have an axis for them
        heads = known["heads"]
    elif origin.assumes.get("head_dim"):
        heads = inner // origin.assumes["head_dim"] if inner % origin.assumes["head_dim"] == 0 else 0
    elif inner == dim and dim in WIDE_HEADS:
        heads = WIDE_HEADS[dim]
    elif dim == 1536:  # DINOv2's g has 24 heads, SigLIP's giantopt 16
        heads = 24 if fields["class_token"] else 16
    elif dim == 768 and fields["pool"] == "avg" and not fields["class_token"] and not fields["reg_tokens"]:
        questions.append(Question("num_heads", "12 in SigLIP, 16 in timm's vit_base_patch16_gap_224", (12, 16)))
        return 12, 64
    elif dim == 384 and re.search(r"(base|momentum)_encoder", prefix):
        questions.append(Question("num_heads", "12 in MoCo v3, 6 in all others of this width", (12, 6)))
        return 12, 32
    elif inner == dim and 192 <= dim <= 1024 and dim % 64 == 0:
        heads = dim // 64
    if not heads:
        several = tuple(heads for heads in (2, 4, 8, 16) if inner % heads == 0) or (1,)
        questions.append(Question("num_heads", f"width {inner} is not that of a published family", several))
        return 1, inner
    assumed.append(f"{heads} heads, as published at width {dim}")
    return heads, inner // heads


def ask_mlp(fields: dict[str, Any], origin: Origin, known: Mapping[str, Any], questions: list[Question]) -> None:
    """CLIP's and SigLIP's towers exist with several forms of GELU, and their tensors are the same."""
    if "mlp" in known:
        return
    bare = not fields["class_token"] and not fields["reg_tokens"] and fields["init_values"] is None and fields["qkv_bias"]
    if fields["pre_norm"]:
        questions.append(Question("mlp", "OpenAI's CLIP has quick_gelu, most of open_clip's gelu", ("quick_gelu", "gelu")))
    elif origin.name in ("timm", "vitrail") and bare and not fields["fc_norm"]:
        questions.append(
            Question("mlp", "SigLIP has gelu_tanh in some sizes of timm and gelu in others", ("gelu", "gelu_tanh"))
        )


def ask_norms(
    fields: dict[str, Any], origin: Origin, config: Mapping[str, Any], known: Mapping[str, Any], questions: list[Question]
) -> None:
    """What norms add to the variance differs within transformers, and where they stand differs within timm."""
    vit = fields["init_values"] is None and not fields["dist_token"] and not fields["reg_tokens"]  # else BEiT or DeiT
    if origin.name == "transformers" and vit and "norm_eps" not in known:
        why = "ViT and MAE have 1e-12, MSN 1e-6; it is layer_norm_eps of config.json"
        questions.append(Question("norm_eps", why, (1e-12, 1e-6)))
    behind = fields["fc_norm"] and not fields["class_token"] and not fields["qkv_bias"] and fields["init_values"] is None
    if origin.name == "timm" and behind and "fc_norm" not in known and not config.get("architecture"):
        why = "the pattern of vit_base_patch16_rpn_224, whose norms stand behind the branches and which is no plain ViT"
        questions.append(Question("fc_norm", f"{why}; if yours is one", (True,)))


def ask_positions(
    shapes: Shapes, fields: dict[str, Any], origin: Origin, known: Mapping[str, Any], questions: list[Question]
) -> None:
    """Rotary positions are computed and leave nothing in a file; some fixed ones do so too."""
    missing = "pos_embed" not in shapes
    if missing and origin.computes_positions:
        if "img_size" not in known:
            questions.append(Question("img_size", "its positions are computed, so no tensor shows the grid", (224, 256)))
        return
    beit = origin.name == "transformers" and fields["init_values"] is not None  # it may have none, and never rotary ones
    if "pos_embed" in known or (missing and beit):
        return
    if missing:
        answer, why = "none", "no positions are in the file: those of DINOv3 and RoPE-ViT are rotary, which is no plain ViT"
    elif origin.name == "timm EVA":
        answer, why = "learn", "these are the names of EVA, and EVA-02 adds rotary positions that no tensor shows"
    elif origin.name == "timm" and fields["pre_norm"] and (not fields["final_norm"] or fields["pool"] == "map"):
        answer, why = "learn", "the pattern of the Perception Encoders, which add rotary positions that no tensor shows"
    elif origin.name == "timm" and not fields["final_norm"] and not fields["class_token"]:
        answer, why = "learn", "the pattern of Qwen3's encoder, which adds rotary positions that no tensor shows"
    else:
        return
    questions.append(Question("pos_embed", f"{why}; if yours has no others", (answer,)))


def assumptions(fields: Mapping[str, Any], origin: Origin, config: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """What is taken as published although another code with the same tensors is known."""
    assumed = []
    if origin.name.startswith("vit-pytorch") and fields["class_token"] and "pool" not in known:
        assumed.append("the class token is what its head sees")
    if origin.name == "timm" and fields["no_embed_class"] and fields["init_values"] is not None and not fields["reg_tokens"]:
        assumed += [] if config.get("architecture") else ["DeiT III, not RoPE-ViT, whose rotary positions no tensor shows"]
    kind = vision_of(config).get("model_type")
    if kind is not None and kind not in PLAIN_KINDS:
        assumed.append(f"the code of transformers' {kind} does nothing but what its tensors' names say")
    return assumed


@dataclass(frozen=True)
class PositionGrid:
    """How the rows of a position embedding lie on the image."""

    grid: Pair
    positions_for: tuple[str, ...]
    """The tokens before the patches that have a row: of cls, dist, reg."""
    source: str
    """Where the grid comes from, for the receipt."""


def positions_of(
    shapes: Shapes,
    fields: Mapping[str, Any],
    facts: Mapping[str, Any],
    said: Mapping[str, Any],
    questions: list[Question],
    *,
    class_row: bool | None,
) -> PositionGrid:
    """The grid of the position embedding, and which tokens before the patches have a row in it.

    Rows show how many patches there are, not how they lie. So, in this order: the size that the model or its config.json
    names, the size that is asked for, a square; each where its patches are as many as the rows. A square that leaves the
    class token without a row is also a rectangle with one (225 rows: 15 x 15, or 14 x 16 and a class token); where neither
    `class_row` of the origin nor a published family settles it, img_size is asked for. Raises ValueError where nothing fits.
    """
    prefix = ("cls",) * fields["class_token"] + ("dist",) * fields["dist_token"]
    arrangements = list(dict.fromkeys([prefix, (), prefix + ("reg",) * fields["reg_tokens"]]))
    if prefix and class_row is not None:
        arrangements = [front for front in arrangements if bool(front) == class_row]
    patch = pair(fields["patch_size"])

    def grid_at(size: Any, patch: Pair) -> Pair | None:
        if size is None:
            return None
        height, width = pair(from_list(size))
        return height // patch[0], width // patch[1]

    named, asked = grid_at(facts.get("img_size"), patch), grid_at(said.get("img_size"), patch)
    if said.get("patch_size") is not None:  # larger patches on a larger image: the same grid
        asked = grid_at(said.get("img_size"), pair(from_list(said["patch_size"])))
    if "pos_embed" not in shapes:
        source = "of img_size" if asked else "of its config" if named else "assumed, of 224 px"
        return PositionGrid(asked or named or (224 // patch[0], 224 // patch[1]), prefix, source)
    table = shapes["pos_embed"]
    if len(table) == 4:
        return PositionGrid((table[1], table[2]), (), "of the file's position embedding")

    def placed(grid: Pair) -> tuple[str, ...] | None:
        return next((front for front in arrangements if table[-2] == grid[0] * grid[1] + len(front)), None)

    sides = [math.isqrt(max(0, table[-2] - len(front))) for front in arrangements]
    squares = [(side, side) for side in sides if side and placed((side, side)) is not None]
    if named and (front := placed(named)) is not None:
        return PositionGrid(named, front, "of its own size")
    if asked and (front := placed(asked)) is not None:
        others = [f"{side}x{side}" for side, _ in squares if (side, side) != asked]
        note = f", though a square of {others[0]} has as many rows" if others else ""
        return PositionGrid(asked, front, f"of the img_size that is asked for{note}")
    if not squares:
        raise ValueError(
            f"the position embedding has {table[-2]} rows, which make no square; give img_size=(height, width) of the model in "
            f"it, whose grid at patch {patch[0]} has {table[-2] - len(prefix)} patches, load, and change the size after that"
        )
    grid, front = squares[0], placed(squares[0])
    assert front is not None
    published = fields["init_values"] is not None or fields["reg_tokens"] or fields["dist_token"]  # DeiT III, registers
    if prefix and not front and not published and class_row is None and grid[0] > 1:
        sizes = [(grid[0] * patch[0], grid[1] * patch[1]), ((grid[0] - 1) * patch[0], (grid[1] + 1) * patch[1])]
        why = (
            f"{table[-2]} rows of positions are {grid[0]}x{grid[1]} patches and no row for the class token, as in FlexiViT, "
            f"or {table[-2] - len(prefix)} patches and one, as in {grid[0] - 1}x{grid[1] + 1}; the file's size, changed later"
        )
        questions.append(Question("img_size", why, tuple(sizes)))
    return PositionGrid(grid, front, "assumed, a square: no size is in the file and none that fits is asked for")


# --------------------------------------------------------------------------------------------------------------------
# config.json


def from_list(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


def vision_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that is about the image encoder."""
    inner = config.get("vision_config")
    return inner if isinstance(inner, Mapping) and inner else config


@printable_errors()
def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json of timm, transformers or open_clip says that tensors do not: fields of ViTConfig.

    Raises ValueError for one that says what can't be.
    """
    try:
        if "model_cfg" in config:
            facts = _open_clip_facts(config["model_cfg"])
        elif "architecture" in config:
            facts = _timm_facts(config)
        else:
            facts = _transformers_facts(vision_of(config))
        sides = pair(facts.get("img_size", 1))
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"config.json is not as its library writes it ({reason}); mend it, or leave it out") from error
    numbers = {"img_size": min(sides), "num_heads": facts.get("num_heads", 1), "norm_eps": facts.get("norm_eps", 1)}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or value <= 0 or (name == "num_heads" and value != int(value)):
            raise ValueError(f"config.json has {name} {value}, which can't be; mend it, or leave it out")
    if facts.get("pool", "cls") not in ("cls", "avg", "map"):
        raise ValueError(f"its pooling {facts['pool']!r} is none of a plain ViT's: class token, mean, attention")
    return facts


def _timm_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    name, args = str(config["architecture"]), dict(config.get("model_args") or {})
    for pattern, why in NO_PLAIN_VIT:
        if re.search(pattern, name):
            raise ValueError(f"{name} is not a plain ViT: {why}; open it with timm")
    facts: dict[str, Any] = {}
    for pattern, says in TIMM_NAMES:
        if re.search(pattern, name):
            facts = {**says, **facts}
    size = (config.get("pretrained_cfg") or {}).get("input_size")
    if size:
        facts["img_size"] = tuple(size[1:])
    pools = {"token": "cls", "avg": "avg", "map": "map"}
    pool = args.get("global_pool", config.get("global_pool"))
    if pool in pools:
        facts["pool"] = pools[pool]
    elif pool:
        raise ValueError(f'timm\'s global_pool "{pool}" is none of {", ".join(pools)}; load with strict=False and pool=…')
    act = args.get("act_layer")
    if act is not None:
        if str(act).lower() not in ACTIVATIONS:
            raise ValueError(f'activation "{act}" is none of {", ".join(sorted(set(ACTIVATIONS.values())))}: not a plain ViT')
        facts["mlp"] = ACTIVATIONS[str(act).lower()]
    for theirs in ("num_heads", "img_size", "norm_eps"):
        if args.get(theirs) is not None:
            facts[theirs] = from_list(args[theirs])
    if args.get("pool_include_prefix") is not None:
        facts["pool_include_prefix"] = bool(args["pool_include_prefix"])
    return facts


def _transformers_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    if rotary := next((name for name in config if name.startswith("rope_") and config[name]), None):
        kind = config.get("model_type", "this model")
        raise ValueError(f"{kind} is not a plain ViT: its positions are rotary ({rotary}); open it with transformers")
    config = {**TRANSFORMERS_DEFAULTS.get(config.get("model_type", ""), {}), **config}
    facts: dict[str, Any] = {}
    for theirs, ours in {
        "num_attention_heads": "num_heads",
        "layer_norm_eps": "norm_eps",
        "image_size": "img_size",
    }.items():
        if config.get(theirs) is not None:
            facts[ours] = from_list(config[theirs])
    act = config.get("hidden_act")
    if act is not None and not config.get("use_swiglu_ffn"):
        if act not in ACTIVATIONS:
            raise ValueError(f'activation "{act}" is none of {", ".join(sorted(set(ACTIVATIONS.values())))}: not a plain ViT')
        facts["mlp"] = ACTIVATIONS[act]
    return facts


def _open_clip_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = config.get("vision_cfg") or {}
    tanh = (vision.get("act_kwargs") or {}).get("approximate") == "tanh"
    facts: dict[str, Any] = {"mlp": "quick_gelu" if config.get("quick_gelu") else "gelu_tanh" if tanh else "gelu"}
    if "eps" in (vision.get("norm_kwargs") or {}):
        facts["norm_eps"] = vision["norm_kwargs"]["eps"]
    if "width" in vision:
        facts["num_heads"] = vision["width"] // vision.get("head_width", 64)
        facts["pool"] = "avg" if vision.get("pool_type") == "avg" else "cls"
    if "image_size" in vision:
        facts["img_size"] = from_list(vision["image_size"])
    if "timm_model_name" in vision:
        facts = {**facts, **_timm_facts({"architecture": vision["timm_model_name"]})}
        pool = vision.get("timm_pool")
        facts |= {"pool": {"token": "cls"}.get(pool, pool)} if pool else {}
    return facts
