"""Our own state dicts: timm's names, and the parts that timm does not have."""

from __future__ import annotations

from vitrail.weights.library import Labels, Layout, Library
from vitrail.weights.names import VIT_TABLE, key_table

STEM = [
    *("patch_embed.pixel_norm.*", "patch_embed.norm.*"),
    *(
        f"patch_embed.stem.{i}.{name}"
        for i in range(15)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ),
]

OURS = Layout(
    name="vitrail",
    anchor="patch_embed.proj.weight",
    table=(*VIT_TABLE, *key_table((name, name) for name in STEM)),
    mixed_gelu=True,
)

VITRAIL = Library(
    layouts=(OURS,),
    labels=lambda config: Labels(config.get("label_names") or (), config.get("multi_label") is True),
)
