"""vit-pytorch (lucidrains): ViT and SimpleViT, of its older versions too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vitrail.weights.library import Evidence, Layout, Library
from vitrail.weights.names import LINEAR_PATCH, PIXEL_NORM, TOKENS, KeyLine, key_table

LAYER = "transformer.layers.#"
ENCODER: list[KeyLine] = [
    ("cls_token", "cls_token", TOKENS),
    ("pos_embed", "pos_embedding", TOKENS),
    ("blocks.#.norm1.*", f"{LAYER}.0.norm.*"),
    ("blocks.#.attn.qkv.weight", f"{LAYER}.0.to_qkv.weight"),
    ("blocks.#.attn.proj.*", f"{LAYER}.0.to_out.0.*"),
    ("blocks.#.attn.proj.*", f"{LAYER}.0.to_out.*"),  # SimpleViT
    ("blocks.#.norm2.*", f"{LAYER}.1.net.0.*"),
    ("blocks.#.mlp.fc1.*", f"{LAYER}.1.net.1.*"),
    ("blocks.#.mlp.fc2.*", f"{LAYER}.1.net.4.*"),
    ("blocks.#.mlp.fc2.*", f"{LAYER}.1.net.3.*"),  # SimpleViT
    ("blocks.#.attn.qkv.weight", f"{LAYER}.0.fn.to_qkv.weight"),  # before 1.2, norms stood around the layers
    ("blocks.#.attn.proj.*", f"{LAYER}.0.fn.to_out.0.*"),
    ("blocks.#.norm2.*", f"{LAYER}.1.norm.*"),
    ("blocks.#.mlp.fc1.*", f"{LAYER}.1.fn.net.0.*"),
    ("blocks.#.mlp.fc2.*", f"{LAYER}.1.fn.net.3.*"),
    ("norm.*", "transformer.norm.*"),
    ("fc_norm.*", "mlp_head.0.*"),
    ("fc_norm.*", "linear_head.0.*"),
    ("head.*", "mlp_head.*"),
    ("head.*", "mlp_head.1.*"),
    ("head.*", "linear_head.*"),
    ("head.*", "linear_head.1.*"),
]


def pooling(evidence: Evidence) -> Mapping[str, Any]:
    """Return the pooling: the last norm always follows it, and so does not show that it is a mean."""
    return {"pool": "cls"} if evidence.fields["class_token"] and evidence.fields["pool"] == "avg" else {}


def assumptions(evidence: Evidence) -> Iterator[str]:
    """Assume pooling by the class token, if there is one and nothing states the pooling."""
    if evidence.fields["class_token"] and "pool" not in evidence.known:
        yield "the class token is what its head sees"


STEM: list[KeyLine] = [
    ("patch_embed.pixel_norm.*", "to_patch_embedding.1.*", PIXEL_NORM),
    ("patch_embed.proj.weight", "to_patch_embedding.2.weight", LINEAR_PATCH),
    ("patch_embed.proj.bias", "to_patch_embedding.2.bias"),
    ("patch_embed.norm.*", "to_patch_embedding.3.*"),
]
OLD_STEM: list[KeyLine] = [
    ("patch_embed.proj.weight", "to_patch_embedding.1.weight", LINEAR_PATCH),
    ("patch_embed.proj.bias", "to_patch_embedding.1.bias"),
]
LAYOUT = Layout(
    name="vit-pytorch",
    anchor="to_patch_embedding.2.weight",
    table=key_table([*STEM, *ENCODER]),
    assumes={"norm_eps": 1e-5, "head_dim": 64},
    computes_positions=True,
    adjust=pooling,
    assumptions=assumptions,
)
OLD_LAYOUT = dataclasses.replace(
    LAYOUT, name="vit-pytorch before 1.0", anchor="to_patch_embedding.1.weight", table=key_table([*OLD_STEM, *ENCODER])
)

VIT_PYTORCH = Library(layouts=(LAYOUT, OLD_LAYOUT))
