"""facebookresearch's repositories: DINOv2's own names, and the evaluation of DINO, MAE and DeiT, whose names timm has."""

from __future__ import annotations

from vitrail.weights.eval_transform import IMAGENET, DefaultTransform
from vitrail.weights.library import Layout, Library
from vitrail.weights.names import VIT_SPELLINGS, VIT_TABLE, key_table

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

META = Library(
    layouts=(DINOV2,),
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
