"""Names of transformers 5, and of the versions before, which every version writes into files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vitrail.weights.library import Evidence, Layout, Question
from vitrail.weights.names import NO_KEY_BIAS, SAME, STACKED, STACKED_PAIR, TOKEN, TOKENS, Form, KeyLine, key_table

TABLE = key_table(
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

Spelling = Mapping[str, str]
"""Parts of names in files, by those of version 5."""
BLOCKS: Spelling = {
    "layers.": "encoder.layer.",
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
}
VIT_BLOCKS: Spelling = {**BLOCKS, ".mlp.fc1.": ".intermediate.dense.", ".mlp.fc2.": ".output.dense."}
DINOV2_BLOCKS: Spelling = {
    **BLOCKS,
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".lambda_1": ".layer_scale1.lambda1",
    ".lambda_2": ".layer_scale2.lambda1",
}
SWIGLU: Spelling = {".mlp.fc1.": ".mlp.weights_in.", ".mlp.fc2.": ".mlp.weights_out."}


def reading(*spellings: Spelling) -> tuple[tuple[str, str], ...]:
    """Invert spellings: patterns of the names in files, and the names of version 5."""
    return tuple((re.escape(before), today) for spelling in spellings for today, before in spelling.items())


def epsilon(evidence: Evidence) -> Iterator[Question]:
    """Ask for norm_eps, which differs between models of the same tensors."""
    fields = evidence.fields
    vit = fields["init_values"] is None and not fields["dist_token"] and not fields["reg_tokens"]  # else BEiT or DeiT
    if vit and "norm_eps" not in evidence.known:
        why = "ViT and MAE have 1e-12, MSN 1e-6; it is layer_norm_eps of config.json"
        yield Question("norm_eps", why, (1e-12, 1e-6))


VIT_LAYOUT = Layout(
    name="transformers",
    anchor="embeddings.patch_embeddings.projection.weight",
    table=TABLE,
    assumes={"norm_eps": 1e-12},
    spellings=reading(VIT_BLOCKS, SWIGLU),
    ignored=r"(embeddings\.mask_token|pooler\.dense|decoder|lm_head)",
    class_row=True,
    needs_positions=lambda evidence: evidence.fields["init_values"] is None,  # BEiT may have none, and never rotary ones
    head_outside=True,
    questions=epsilon,
)
DINOV2_LAYOUT = Layout(
    name="transformers DINOv2",
    anchor=VIT_LAYOUT.anchor,
    table=TABLE,
    assumes={"norm_eps": 1e-6},
    spellings=reading(VIT_BLOCKS, SWIGLU, DINOV2_BLOCKS),
    ignored=VIT_LAYOUT.ignored,
    class_row=True,
)

TOWER: list[KeyLine] = [
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


def clip_pooling(evidence: Evidence) -> Mapping[str, Any]:
    """CLIPForImageClassification pools the mean of the tokens before the last norm."""
    head = {"norm.weight", "head.bias"} <= evidence.shapes.keys()
    return {"pool": "avg", "final_norm": False} if head else {}


def siglip_pooling(evidence: Evidence) -> Mapping[str, Any]:
    """SiglipForImageClassification pools the mean of the tokens, even if the file has an attention pooling."""
    return {"pool": "avg"} if "head.weight" in evidence.shapes else {}


CLIP_LAYOUT = Layout(
    name="transformers CLIP",
    anchor="embeddings.patch_embedding.weight",
    table=key_table(
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
    class_row=True,
    head_outside=True,
    adjust=clip_pooling,
)
SIGLIP_LAYOUT = Layout(
    name="transformers SigLIP",
    anchor=CLIP_LAYOUT.anchor,
    table=key_table(
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
    ignored=CLIP_LAYOUT.ignored,
    head_outside=True,
    adjust=siglip_pooling,
)
