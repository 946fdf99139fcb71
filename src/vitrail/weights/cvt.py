"""CvT checkpoints: infer the shape. No tensor depends on the image size."""

from __future__ import annotations

from vitrail.settings.cvt import CVT_SIZES, CvtConfig, CvtSize
from vitrail.weights.family import FamilyFile, FamilyReader
from vitrail.weights.library import Question


def infer(file: FamilyFile) -> CvtConfig:
    """Infer the config of the model in a file.

    Raises ValueError for tensors that are not all of a CvT, and for heads that neither config.json nor a published size tells.
    """
    stages = file.count("stage{}.patch_embed.proj.weight")
    embed_dims = tuple(file.shape(f"stage{stage}.patch_embed.proj.weight")[0] for stage in range(stages))
    depths = tuple(file.count(f"stage{stage}.blocks.{{}}.norm1.weight") for stage in range(stages))
    stated = dict(file.stated)
    heads = file.overrides.get("num_heads") or stated.pop("num_heads", None) or published_heads(embed_dims, depths)
    if heads is None:
        question = Question("num_heads", "no tensor shows them", (tuple(max(1, dim // 64) for dim in embed_dims),))
        raise ValueError(f"the checkpoint does not determine {question}")
    fields = {
        "in_channels": file.shape("stage0.patch_embed.proj.weight")[1],
        "num_classes": file.shape("head.weight")[0] if "head.weight" in file else 0,
        "embed_dims": embed_dims,
        "depths": depths,
        "num_heads": tuple(heads),
        "mlp_ratio": file.shape("stage0.blocks.0.mlp.fc1.weight")[0] / embed_dims[0],
        "qkv_bias": "stage0.blocks.0.attn.proj_q.bias" in file,
    }
    return CvtConfig(**{"img_size": 224} | stated | fields)


def published_heads(embed_dims: tuple[int, ...], depths: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the heads of a published size; None for another shape."""
    sizes: list[CvtSize] = [size for size in CVT_SIZES.values() if (size.embed_dims, size.depths) == (embed_dims, depths)]
    return sizes[0].num_heads if sizes else None


CVT = FamilyReader(infer)
