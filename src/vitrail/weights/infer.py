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
from vitrail.weights.origins import Origin, Recognised

Shapes = Mapping[str, tuple[int, ...]]

WIDE_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}
"""Published widths whose heads are not 64 wide: So400m, H, g, G, E (Zhai et al. 2022; Alabdulmohsin et al. 2023)."""

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
)

REASONS = (  # a name that a plain ViT does not have, and what it is a sign of
    (
        r"patch_embed\.backbone|embedder|resnetv2|conv_root|root_block|bit\.",
        "a convolutional network stands before the patches (hybrid)",
    ),
    (r"relative_position|rel_pos", "attention has relative position biases"),
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


def infer(shapes: Shapes, origin: Origin, *, config: Mapping[str, Any], said: Mapping[str, Any]) -> Inferred:
    """The config of the model in the file.

    `shapes` are by our names; `config` is the config.json beside the file, {} where there is none; `said` is what the user
    gave, and answers questions. Raises ValueError for tensors that make no plain ViT and, naming the answers, for what
    nothing tells.
    """
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc2.weight"):
        if name not in shapes:
            raise ValueError(f"this {origin.name} checkpoint has nothing for {name}, so it is not a whole plain ViT")
    for name in shapes:
        if "norm" in name and name.endswith(".weight") and f"{name.removesuffix('weight')}bias" not in shapes:
            raise ValueError(
                f"this {origin.name} checkpoint is not a plain ViT: {name} comes without a bias, as in RMSNorm; "
                "open it with its own library"
            )
    facts = facts_of(config)
    known = {**facts, **{name: value for name, value in said.items() if value is not None}}
    architecture = str(config.get("architecture", ""))
    if "_rpn_" in architecture:
        raise ValueError(f"{architecture} is not a plain ViT: its norms stand behind attention and MLP; open it with timm")

    dim, channels, *patch = shapes["patch_embed.proj.weight"]
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    missing = [i for i in range(depth) if f"blocks.{i}.attn.qkv.weight" not in shapes]
    if missing:
        raise ValueError(
            f"this {origin.name} checkpoint has {depth} blocks, but nothing for block {missing[0]}; it is not whole"
        )
    first, second = shapes["blocks.0.mlp.fc1.weight"], shapes["blocks.0.mlp.fc2.weight"]
    hidden = second[1]
    gated = first[0] == 2 * hidden
    cls, dist = bool(math.prod(shapes.get("cls_token", (0,)))), "dist_token" in shapes
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    head = shapes.get("head.weight", (0, dim))

    fields: dict[str, Any] = {
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "in_channels": channels,
        "num_classes": head[0],
        "embed_dim": dim,
        "depth": depth,
        "mlp_ratio": hidden / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        "norm_eps": 1e-5 if "norm_pre.weight" in shapes else 1e-6,
        "pre_norm": "norm_pre.weight" in shapes,
        "patch_norm": "patch_embed.pixel_norm.weight" in shapes,
        "final_norm": "norm.weight" in shapes or "fc_norm.weight" in shapes,
        "fc_norm": "fc_norm.weight" in shapes,
        "class_token": cls,
        "dist_token": dist,
        "reg_tokens": registers,
        "head": "mlp" if "pre_logits.fc.weight" in shapes else "linear",
        "stem": "conv" if any(name.startswith("patch_embed.stem") for name in shapes) else "patch",
    }
    if "attn_pool.latent" in shapes:
        fields["pool"] = "map"
    elif head[1] == 2 * dim:
        fields["pool"] = "cls+avg"
    else:
        fields["pool"] = "avg" if fields["fc_norm"] or not cls else "cls"
    if origin.name == "transformers SigLIP" and "head.weight" in shapes:
        fields["pool"] = "avg"  # SiglipForImageClassification: the mean of the tokens, whatever pooling is in the file
    if origin.name == "transformers CLIP" and "norm.weight" in shapes and "head.bias" in shapes:
        fields |= {"pool": "avg", "final_norm": False}  # CLIPForImageClassification: the mean of tokens before the last norm
    fields |= {name: value for name, value in origin.assumes.items() if name != "head_dim"}
    fields["mlp"] = "swiglu" if gated else fields.get("mlp", "gelu")
    for name in ("mlp", "norm_eps", "pool", "pool_include_prefix"):  # of which config.json may tell more than tensors do
        if name in facts:
            fields[name] = facts[name]
    if gated:
        fields["mlp"] = "swiglu"

    assumed: list[str] = []
    questions: list[Question] = []
    heads, head_dim = heads_of(shapes, origin, fields, known, assumed, questions)
    fields |= {"num_heads": heads, "head_dim": None if head_dim * heads == dim else head_dim}
    if not gated:
        ask_mlp(fields, origin, known, questions)
    if origin.name == "transformers" and cls and not dist and fields["init_values"] is None and "norm_eps" not in known:
        questions.append(Question("norm_eps", "ViT and MAE have 1e-12, MSN 1e-6", (1e-12, 1e-6)))
    if fields["pool"] == "map" and registers and "pool_include_prefix" not in known:
        why = "whether attention pooling looks at the registers"
        questions.append(Question("pool_include_prefix", why, (False, True)))
    behind = fields["fc_norm"] and not cls and not fields["qkv_bias"] and fields["init_values"] is None
    if behind and "fc_norm" not in known and not architecture:
        why = "the pattern of vit_base_patch16_rpn_224, whose norms stand behind the branches and which is no plain ViT"
        questions.append(Question("fc_norm", f"{why}; if yours is one", (True,)))
    if questions:
        raise ValueError("the tensors do not tell " + "; nor ".join(map(str, questions)))

    grid, placed = positions_of(shapes, origin, fields, facts, said)
    fields["no_embed_class"] = cls and "cls" not in placed
    fields["pos_embed"] = "learn" if "pos_embed" in shapes or origin.computes_positions else "none"
    fields["img_size"] = (grid[0] * patch[0], grid[1] * patch[1])
    fields |= {name: said[name] for name in ("mlp", "norm_eps", "pool", "pool_include_prefix") if name in said}
    if gated:
        fields["mlp"] = "swiglu"
    return Inferred(ViTConfig(**fields), grid, placed, tuple(assumed))


def heads_of(
    shapes: Shapes,
    origin: Origin,
    fields: Mapping[str, Any],
    known: Mapping[str, Any],
    assumed: list[str],
    questions: list[Question],
) -> tuple[int, int]:
    """Number and width of the heads."""
    dim, inner = fields["embed_dim"], shapes["blocks.0.attn.qkv.weight"][0] // 3
    if "num_heads" in known:
        heads = int(known["num_heads"])
        if inner % heads:
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


def positions_of(
    shapes: Shapes, origin: Origin, fields: Mapping[str, Any], facts: Mapping[str, Any], said: Mapping[str, Any]
) -> tuple[Pair, tuple[str, ...]]:
    """The grid of the position embedding, and which tokens before the patches have a row in it."""
    front = ("cls",) * fields["class_token"] + ("dist",) * fields["dist_token"]
    possible = [front, (), front + ("reg",) * fields["reg_tokens"]]
    patch = pair(fields["patch_size"])
    sizes = [pair(from_list(one)) for one in (facts.get("img_size"), said.get("img_size")) if one is not None]
    if "pos_embed" not in shapes:
        size = sizes[-1] if sizes else (224, 224)
        return (size[0] // patch[0], size[1] // patch[1]), front
    table = shapes["pos_embed"]
    if len(table) == 4:
        return (table[1], table[2]), ()
    for height, width in sizes:  # a grid that somebody named
        grid = (height // patch[0], width // patch[1])
        for placed in possible:
            if table[1] == grid[0] * grid[1] + len(placed):
                return grid, placed
    for placed in possible:
        side = math.isqrt(max(0, table[1] - len(placed)))
        if side and side * side == table[1] - len(placed):
            return (side, side), placed
    raise ValueError(
        f"the position embedding has {table[1]} rows, which make no square; give img_size=(height, width) of the model in the "
        f"file, whose grid at patch {patch[0]} has {table[1] - len(front)} patches, load, and change the size after that"
    )


# --------------------------------------------------------------------------------------------------------------------
# config.json


def from_list(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json of timm, transformers or open_clip says that tensors do not: fields of ViTConfig."""
    if "model_cfg" in config:
        return _open_clip_facts(config["model_cfg"])
    if "architecture" in config:
        return _timm_facts(config)
    if "vision_config" in config:
        return _transformers_facts(config["vision_config"])
    return _transformers_facts(config)


def _timm_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    name, args = str(config["architecture"]), dict(config.get("model_args") or {})
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
    for theirs in ("num_heads", "img_size", "pool_include_prefix"):
        if args.get(theirs) is not None:
            facts[theirs] = from_list(args[theirs])
    return facts


def _transformers_facts(config: Mapping[str, Any]) -> dict[str, Any]:
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
    facts: dict[str, Any] = {"mlp": "quick_gelu" if config.get("quick_gelu") else "gelu"}
    if "width" in vision:
        facts["num_heads"] = vision["width"] // vision.get("head_width", 64)
    if "image_size" in vision:
        facts["img_size"] = from_list(vision["image_size"])
    if "timm_model_name" in vision:
        facts = {**facts, **_timm_facts({"architecture": vision["timm_model_name"]})}
        facts["pool"] = {"token": "cls"}.get(vision.get("timm_pool", ""), vision.get("timm_pool") or "cls")
    return facts
