"""Home-made ViTs: the layouts of well-known tutorials, and what is asked about code that nobody knows."""

# D width · h heads · d = D / h

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.weights.arrange import ACTIVATION, ATTN_SCALE, NORM_FIRST, PATCH_ORDER, PIXEL_SCALE, QKV_ORDER
from vitrail.weights.library import Evidence, Layout, Library, Question, Shapes
from vitrail.weights.names import LINEAR_PATCH, STACKED, TOKENS, Form, KeyLine, KeyRow, key_table

# One projection for each head, stacked by `unstack` to (h, d, D): three of them make (3 h d, D)
HEADS = Form(
    lambda parts: torch.cat([part.flatten(0, 1) for part in parts]),
    lambda x, cfg: [part.unflatten(0, (cfg.num_heads, -1)) for part in x.chunk(3)],
    heads_axis=0,
)
ONE_HEAD = re.compile(r"(.*heads?)\.(\d+)\.((?:.*[._])?(?:q|k|v|query|key|value)(?:_?proj)?)\.(weight|bias)")


def joined_name(name: str) -> str:
    """Return the name of the stack of which a projection of one head is a part; any other name as it is."""
    match = ONE_HEAD.fullmatch(name)
    return f"{match[1]}.{match[3]}.{match[4]}" if match else name


def unstack(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Stack the projections of heads that are modules of their own: "heads.0.query", "heads.1.query", … to "heads.query"."""
    found = {name: match for name in tensors if (match := ONE_HEAD.fullmatch(name))}
    if not found:
        return tensors
    joined: dict[str, dict[int, Tensor]] = {}
    for name, match in found.items():
        joined.setdefault(joined_name(name), {})[int(match[2])] = tensors[name]
    stacks = {name: torch.stack([heads[index] for index in sorted(heads)]) for name, heads in joined.items()}
    return {name: tensors[name] for name in tensors if name not in found} | stacks


def pixels(evidence: Evidence) -> Iterator[Question]:
    """Ask for the scale of the pixels, which no file of a home-made model states."""
    if "pixel_scale" not in evidence.known:
        yield PIXEL_SCALE


def pooling(evidence: Evidence) -> Mapping[str, Any]:
    """A norm in the head stands behind the pooling, by the class token where there is one."""
    return {"pool": "cls"} if evidence.fields["class_token"] and evidence.fields["pool"] == "avg" else {}


def unknown_code(evidence: Evidence) -> Iterator[Question]:
    """Ask for what the code does, of which only tensors are known."""
    if "norm_first" not in evidence.known:
        yield NORM_FIRST
    if "mlp" not in evidence.known and evidence.fields["mlp"] != "swiglu":
        yield ACTIVATION
    yield from pixels(evidence)


def assumptions(evidence: Evidence) -> Iterator[str]:
    """Assume what nearly all such code does."""
    if evidence.fields["class_token"] and "pool" not in evidence.known:
        yield "the class token is what its head sees"
    if "attn_scale" not in evidence.known:
        yield "attention scaled by the width of a head, and no rotary positions"
    if "norm_eps" not in evidence.known:
        yield f"norms with torch's epsilon, {evidence.fields['norm_eps']:g}"


TORCH_EPS = {"norm_eps": 1e-5}
"""Epsilon of nn.LayerNorm."""


def mha(block: str, theirs: str) -> list[KeyLine]:
    """Return the rows of an nn.MultiheadAttention in a block."""
    return [
        ("blocks.#.attn.qkv.weight", f"{block}.{theirs}.in_proj_weight"),
        ("blocks.#.attn.qkv.bias", f"{block}.{theirs}.in_proj_bias"),
        ("blocks.#.attn.proj.*", f"{block}.{theirs}.out_proj.*"),
    ]


D2L = Layout(
    name="d2l",  # Dive into Deep Learning, chapter "Transformers for Vision"
    anchor="patch_embedding.conv.weight",
    table=key_table(
        [
            ("cls_token", "cls_token", TOKENS),
            ("pos_embed", "pos_embedding", TOKENS),
            ("patch_embed.proj.*", "patch_embedding.conv.*"),
            ("blocks.#.norm1.*", "blks.#.ln1.*"),
            ("blocks.#.attn.qkv.*", tuple(f"blks.#.attention.W_{x}.*" for x in "qkv"), STACKED),
            ("blocks.#.attn.proj.*", "blks.#.attention.W_o.*"),
            ("blocks.#.norm2.*", "blks.#.ln2.*"),
            ("blocks.#.mlp.fc1.*", "blks.#.mlp.dense1.*"),
            ("blocks.#.mlp.fc2.*", "blks.#.mlp.dense2.*"),
            ("norm.*", "head.0.*"),
            ("head.*", "head.1.*"),
        ]
    ),
    assumes=TORCH_EPS,
    arrangement={"norm_first": True},
    published=False,
    class_row=True,
    questions=pixels,
)
UVA = Layout(
    name="UvA",  # deep learning tutorials of the University of Amsterdam, and Lightning's copy
    anchor="input_layer.weight",
    table=key_table(
        [
            ("cls_token", "cls_token"),
            ("pos_embed", "pos_embedding"),
            ("patch_embed.proj.weight", "input_layer.weight", LINEAR_PATCH),
            ("patch_embed.proj.bias", "input_layer.bias"),
            ("blocks.#.norm1.*", "transformer.#.layer_norm_1.*"),
            *mha("transformer.#", "attn"),
            ("blocks.#.norm2.*", "transformer.#.layer_norm_2.*"),
            ("blocks.#.mlp.fc1.*", "transformer.#.linear.0.*"),
            ("blocks.#.mlp.fc2.*", "transformer.#.linear.3.*"),
            ("norm.*", "mlp_head.0.*"),
            ("head.*", "mlp_head.1.*"),
        ]
    ),
    assumes=TORCH_EPS,
    arrangement={"patch_order": "c p1 p2", "norm_first": True},
    published=False,
    class_row=True,
    questions=pixels,
)
PAPER_REPLICATING = Layout(
    name="mrdbourke",  # learnpytorch.io, "PyTorch Paper Replicating"
    anchor="patch_embedding.patcher.weight",
    table=key_table(
        [
            ("cls_token", "class_embedding"),
            ("pos_embed", "position_embedding"),
            ("patch_embed.proj.*", "patch_embedding.patcher.*"),
            ("blocks.#.norm1.*", "transformer_encoder.#.msa_block.layer_norm.*"),
            *mha("transformer_encoder.#", "msa_block.multihead_attn"),
            ("blocks.#.norm2.*", "transformer_encoder.#.mlp_block.layer_norm.*"),
            ("blocks.#.mlp.fc1.*", "transformer_encoder.#.mlp_block.mlp.0.*"),
            ("blocks.#.mlp.fc2.*", "transformer_encoder.#.mlp_block.mlp.3.*"),
            ("norm.*", "classifier.0.*"),
            ("head.*", "classifier.1.*"),
        ]
    ),
    assumes=TORCH_EPS,
    arrangement={"norm_first": True},
    published=False,
    class_row=True,
    questions=pixels,
)
FROM_SCRATCH = Layout(
    name="tintn",  # vision-transformer-from-scratch, with its attention by heads or as one projection
    anchor="embedding.patch_embeddings.projection.weight",
    table=key_table(
        [
            ("cls_token", "embedding.cls_token"),
            ("pos_embed", "embedding.position_embeddings"),
            ("patch_embed.proj.*", "embedding.patch_embeddings.projection.*"),
            ("blocks.#.norm1.*", "encoder.blocks.#.layernorm_1.*"),
            ("blocks.#.attn.qkv.*", "encoder.blocks.#.attention.qkv_projection.*"),
            (
                "blocks.#.attn.qkv.*",
                tuple(f"encoder.blocks.#.attention.heads.{x}.*" for x in ("query", "key", "value")),
                HEADS,
            ),
            ("blocks.#.attn.proj.*", "encoder.blocks.#.attention.output_projection.*"),
            ("blocks.#.norm2.*", "encoder.blocks.#.layernorm_2.*"),
            ("blocks.#.mlp.fc1.*", "encoder.blocks.#.mlp.dense_1.*"),
            ("blocks.#.mlp.fc2.*", "encoder.blocks.#.mlp.dense_2.*"),
            ("norm.*", "encoder.norm.*"),
            ("head.*", "classifier.*"),
        ]
    ),
    assumes={**TORCH_EPS, "mlp": "gelu_tanh"},
    arrangement={"norm_first": True},
    published=False,
    class_row=True,
    questions=pixels,
)
JEONSWORLD = Layout(
    name="jeonsworld",  # ViT-pytorch, in which Google's weights are fine-tuned
    anchor="embeddings.patch_embeddings.weight",
    table=key_table(
        [
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj.*", "embeddings.patch_embeddings.*"),
            ("blocks.#.norm1.*", "encoder.layer.#.attention_norm.*"),
            ("blocks.#.attn.qkv.*", tuple(f"encoder.layer.#.attn.{x}.*" for x in ("query", "key", "value")), STACKED),
            ("blocks.#.attn.proj.*", "encoder.layer.#.attn.out.*"),
            ("blocks.#.norm2.*", "encoder.layer.#.ffn_norm.*"),
            ("blocks.#.mlp.fc1.*", "encoder.layer.#.ffn.fc1.*"),
            ("blocks.#.mlp.fc2.*", "encoder.layer.#.ffn.fc2.*"),
            ("norm.*", "encoder.encoder_norm.*"),
            ("head.*", "head.*"),
        ]
    ),
    assumes={"norm_eps": 1e-6},
    class_row=True,
    head_outside=True,
    questions=pixels,
)
RESIDUAL_ADD = Layout(
    name="FrancescoSaverioZuppichini",  # ViT, and the many copies of its article; a convolution
    anchor="0.projection.0.weight",
    table=key_table(
        [
            ("cls_token", "0.cls_token", TOKENS),
            ("pos_embed", "0.positions", TOKENS),
            ("patch_embed.proj.*", "0.projection.0.*"),
            ("blocks.#.norm1.*", "1.#.0.fn.0.*"),
            ("blocks.#.attn.qkv.*", "1.#.0.fn.1.qkv.*"),
            ("blocks.#.attn.qkv.*", tuple(f"1.#.0.fn.1.{x}.*" for x in ("queries", "keys", "values")), STACKED),
            ("blocks.#.attn.proj.*", "1.#.0.fn.1.projection.*"),
            ("blocks.#.norm2.*", "1.#.1.fn.0.*"),
            ("blocks.#.mlp.fc1.*", "1.#.1.fn.1.0.*"),
            ("blocks.#.mlp.fc2.*", "1.#.1.fn.1.3.*"),
            ("fc_norm.*", "2.1.*"),
            ("head.*", "2.2.*"),
        ]
    ),
    assumes={**TORCH_EPS, "pool": "avg", "pool_include_prefix": True},
    arrangement={"qkv_order": "h d qkv", "norm_first": True},
    published=False,
    class_row=True,
    questions=lambda evidence: (*([] if "attn_scale" in evidence.known else [ATTN_SCALE]), *pixels(evidence)),
)
LINEAR_RESIDUAL_ADD = Layout(
    name="FrancescoSaverioZuppichini, linear",
    anchor="0.projection.1.weight",
    table=tuple(
        row._replace(theirs=(row.theirs[0].replace("projection.0", "projection.1"),), form=LINEAR_PATCH)
        if row.ours == "patch_embed.proj.weight"
        else row._replace(theirs=tuple(theirs.replace("0.projection.0", "0.projection.1") for theirs in row.theirs))
        for row in RESIDUAL_ADD.table
    ),
    assumes=RESIDUAL_ADD.assumes,
    arrangement={**RESIDUAL_ADD.arrangement, "patch_order": "p1 p2 c"},
    published=False,
    class_row=True,
    questions=RESIDUAL_ADD.questions,
)

# --------------------------------------------------------------------------------------------------------------------
# Code that nobody knows


def layout_of(table: tuple[KeyRow, ...], shapes: Shapes) -> Layout:
    """Return the layout of one file, from a table of its own; orders that no shape shows are asked for."""
    stem = next((row.theirs[0] for row in table if row.ours == "patch_embed.proj.weight"), "")
    qkv = next((row.theirs for row in table if row.ours == "blocks.#.attn.qkv.weight"), ())
    open_orders = [
        *([PATCH_ORDER] if len(shapes.get(stem, ())) == 2 else []),
        *([QKV_ORDER] if len(qkv) == 1 and not qkv[0].endswith("in_proj_weight") else []),
    ]

    def questions(evidence: Evidence) -> Iterator[Question]:
        yield from (question for question in open_orders if question.field not in evidence.known)
        yield from unknown_code(evidence)

    return Layout(
        name="home-made",
        anchor="",
        table=table,
        assumes=TORCH_EPS,
        published=False,
        ranked=True,
        ignored=r".*",
        adjust=pooling,
        questions=questions,
        assumptions=assumptions,
    )


HOMEMADE = Library(
    layouts=(D2L, UVA, PAPER_REPLICATING, FROM_SCRATCH, JEONSWORLD, RESIDUAL_ADD, LINEAR_RESIDUAL_ADD), unstack=unstack
)
