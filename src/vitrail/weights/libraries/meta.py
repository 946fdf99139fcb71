"""facebookresearch's repositories: names of DINOv2, DINOv3, V-JEPA 2, SAM and ViTDet; evaluation of models with timm's."""

from __future__ import annotations

import functools
import re
from typing import Any

from vitrail.settings.modern import ModernConfig
from vitrail.settings.vitdet import VitDetConfig
from vitrail.weights.eval_transform import IMAGENET, DefaultTransform
from vitrail.weights.library import Config, FamilyLayout, Layout, Library
from vitrail.weights.names import CLASS_AND_GRID, STILL_PATCH, VIT_SPELLINGS, VIT_TABLE, Form, key_table

DINOV2 = Layout(
    name="DINOv2",
    anchor="patch_embed.proj.weight",
    table=(
        *key_table(
            [
                ("reg_token", "register_tokens"),
                ("blocks.#.mlp.fc1.*", "blocks.#.mlp.w12.*"),
                ("blocks.#.mlp.fc2.*", "blocks.#.mlp.w3.*"),
            ]
        ),
        *VIT_TABLE,
    ),
    spellings=VIT_SPELLINGS,
    ignored=r"(mask_token|dino_head|ibot_head)",
)

DINOV3_PARTS = {
    r"^reg_token$": "storage_tokens",
    r"^rope\.periods$": "rope_embed.periods",
    r"\.gamma_(.)$": r".ls\1.gamma",
    r"\.attn\.[qv]_bias$": ".attn.qkv.bias",
    r"\.mlp\.fc1_g\.": ".mlp.w1.",
    r"\.mlp\.fc1_x\.": ".mlp.w2.",
}


def dinov3_names(name: str, *, gated: bool = False) -> tuple[str, ...]:
    """Return the name in DINOv3's files, whose bias of queries, keys and values is one tensor."""
    for pattern, theirs in DINOV3_PARTS.items():
        name = re.sub(pattern, theirs, name)
    return (name.replace(".mlp.fc2.", ".mlp.w3.") if gated else name,)


def dinov3_form(name: str) -> Form | None:
    """Return the part of the joined bias: that of the keys is masked, and zero in effect."""
    part = {"q": 0, "v": 2}.get(name[-6:-5]) if name.endswith(("attn.q_bias", "attn.v_bias")) else None
    return None if part is None else Form(lambda parts: parts[0].chunk(3)[part], lambda x, cfg: [x])


def dinov3_fields(config: Config) -> dict[str, Any]:
    """Return what the code of DINOv3 fixes, whatever stands beside the file."""
    return {"rope": "centred", "rope_rescale": 2.0, "pool": "cls"}


DINOV3, DINOV3_GATED = (
    FamilyLayout(
        ModernConfig,
        "DINOv3",
        ("patch_embed.proj.weight", "reg_token", "blocks.0.gamma_1", "blocks.0.mlp.fc2.weight"),
        names=functools.partial(dinov3_names, gated=gated),
        form=dinov3_form,
        ignored=r"mask_token$|bias_mask$|periods$|local_cls_norm|dino_head|ibot_head",
        fields=dinov3_fields,
    )
    for gated in (False, True)
)


VJEPA2 = FamilyLayout(
    ModernConfig,
    "V-JEPA 2",
    ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "norm.weight"),
    form=lambda name: STILL_PATCH if name == "patch_embed.proj.weight" else None,
    fits=lambda shape: len(shape("patch_embed.proj.weight")) == 5,
    fields=lambda config: {"rope": "video", "norm_eps": 1e-6, "img_size": 256},
    assumes={"img_size": "256 px, as in pre-training; positions are counted, and any size is read"},
)


def sam_names(name: str) -> tuple[str, ...]:
    """Return the name in SAM's own files, of its image encoder."""
    return (f"image_encoder.{re.sub(r'[.]mlp[.]fc', '.mlp.lin', name)}",)


SAM = FamilyLayout(
    VitDetConfig,
    "SAM",
    shows=("neck.0.weight", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"),
    names=sam_names,
    encoder="image_encoder.",
    fields=lambda config: {"norm_eps": 1e-6},
)


def detectron2_names(name: str) -> tuple[str, ...]:
    """Return the name in ViTDet's own files, of its backbone."""
    return (re.sub(r"\.residual\.norm(\d)\.", r".residual.conv\1.norm.", name),)


VITDET = FamilyLayout(
    VitDetConfig,
    "detectron2's ViTDet",
    shows=("pos_embed", "blocks.0.attn.rel_pos_h", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"),
    names=detectron2_names,
    form=lambda name: CLASS_AND_GRID if name == "pos_embed" else None,
    fits=lambda shape: len(shape("pos_embed")) == 3,
    fields=lambda config: {"norm_eps": 1e-6, "pos_resize": "cubic"},
)

META = Library(
    layouts=(DINOV2,),
    family_layouts=(DINOV3, DINOV3_GATED, VJEPA2, SAM, VITDET),
    default_transforms=(
        # dino: eval_linear.py; dinov2: data/transforms.py
        DefaultTransform("dino", "DINO's checkpoints", IMAGENET, 0.875, "center", "bicubic"),
        # mae: util/datasets.py
        DefaultTransform("mae", "MAE's checkpoints", IMAGENET, 0.875, "center", "bicubic", above_224=(1.0, "bicubic")),
        # deit: datasets.py
        DefaultTransform("deit", "DeiT's checkpoints", IMAGENET, 0.875, "center", "bicubic"),
        # cait: README_cait.md
        DefaultTransform("cait", "CaiT's checkpoints", IMAGENET, 1.0, "center", "bicubic"),
    ),
)
