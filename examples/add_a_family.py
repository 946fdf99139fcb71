"""Adds a family of backbones in one file: the MLP-Mixer (Tolstikhin et al. 2021), and every command's function takes it.

    python examples/add_a_family.py                    half a minute on the sample that comes with the package
    python examples/add_a_family.py --steps 20

A family is a frozen config, a section of the settings, a backbone, and a row in each of two tables.
"""

# B batch · C channels · H W image · P patch · L patches · D width · K classes

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import vitrail
from vitrail.models.backbone import Backbone, Features, Images, Logits, Stage, View
from vitrail.models.families import BUILDERS, BackboneBuilder
from vitrail.settings import ModelSection, Pair, pair
from vitrail.settings.families import FAMILIES, Family, Words


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Everything that decides a Mixer's shape."""

    img_size: int | Pair = 224
    """Image side in pixels, or (height, width)."""
    patch_size: int = 16
    """Patch side in pixels."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head."""
    embed_dim: int = 512
    """Width of a patch."""
    depth: int = 8
    """Number of blocks."""

    def __post_init__(self) -> None:
        if any(side % self.patch_size for side in pair(self.img_size)):
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}; change one of them")


@dataclass(frozen=True, kw_only=True)
class MixerModelConfig(MixerConfig, ModelSection):
    """The `model` section of a Mixer."""

    config_type = MixerConfig
    name: str = "mixer_s"
    """Name of the model: "mixer_s"."""


class Mlp(nn.Sequential):
    """Two layers around GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class MixerBlock(nn.Module):
    """An MLP over the patches, then one over the channels (equation 1)."""

    def __init__(self, dim: int, patches: int) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(dim), Mlp(patches, dim // 2)
        self.norm2, self.channels = nn.LayerNorm(dim), Mlp(dim, 4 * dim)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)  # U = X + W₂ σ(W₁ LN(X))
        return x + self.channels(self.norm2(x))  # Y = U + W₄ σ(W₃ LN(U))


class Mixer(Backbone):
    """An MLP-Mixer."""

    config: MixerConfig
    heads = ("head",)
    stems = ("stem",)

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config
        (height, width), patch, dim = pair(config.img_size), config.patch_size, config.embed_dim
        self.grid = height // patch, width // patch
        self.stem = nn.Conv2d(config.in_channels, dim, kernel_size=patch, stride=patch)
        self.blocks = nn.ModuleList(MixerBlock(dim, self.grid[0] * self.grid[1]) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.reset_head(config.num_classes)

    def reset_head(self, num_classes: int) -> None:
        """See Backbone.reset_head."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        device = self.stem.weight.device
        self.head = nn.Linear(self.config.embed_dim, num_classes, device=device) if num_classes else nn.Identity()

    @property
    def side_unit(self) -> Pair:
        """Its MLPs know one number of patches, so images have one size."""
        return pair(self.config.img_size)

    def stages(self) -> list[Stage]:
        """The stem, each block, and the head with the last norm: what freezing, layer decay and sharding act on."""
        blocks = [Stage(f"blocks.{index}", (f"blocks.{index}",), block) for index, block in enumerate(self.blocks)]
        return [Stage("stem", ("stem",)), *blocks, Stage("head", ("norm", "head"))]

    def features(self, images: Images, view: View = View()) -> Features:
        """Mean of the patches, and the patches as tokens and as a map. Raises ValueError for a view that it does not have."""
        if not view.whole:
            raise ValueError("a Mixer looks at whole images of one size only; use a ViT")
        x = self.stem(images).flatten(2).transpose(1, 2)  # (B, L, D)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Features(pooled=x.mean(dim=1), tokens=x, grid=self.grid, pyramid=(x.transpose(1, 2).unflatten(2, self.grid),))

    def head_logits(self, images: Images, *, patch_size: int | Pair | None = None) -> tuple[Logits, ...]:
        """The logits, in a tuple of one."""
        return (self.head(self.features(images, View(patch_size=patch_size)).pooled),)

    def forward(self, images: Images) -> Logits:
        """Logits (B, K)."""
        return self.head_logits(images)[0]


def mixer_name(name: str) -> dict[str, Any] | None:
    """Fields that a name decides; None for another family's."""
    return {"embed_dim": 512, "depth": 8} if name == "mixer_s" else None


FAMILIES["mixer"] = Family(
    section=MixerModelConfig,
    parse=mixer_name,
    name_of=lambda config: "mixer_s",
    noun="a Mixer",
    words=lambda config: Words("Mixer-S", "MLP-Mixer", f"{config.depth} blocks of width {config.embed_dim}", ("mlp-mixer",)),
    stored_as="mixer",
    names=("mixer_s",),
)
BUILDERS[MixerConfig] = BackboneBuilder(Mixer)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a Mixer on the embedded sample, and loads its run folder.")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "mixer")
        run = vitrail.train(
            out=folder,
            model={"name": "mixer_s", "patch_size": 4, "embed_dim": 64, "depth": 4},
            train={"steps": args.steps, "batch_size": 128, "device": "cpu", "precision": "fp32"},
        )
        loaded = vitrail.load(folder)
        assert isinstance(loaded, Mixer)
        confidence = F.softmax(loaded(torch.zeros(1, 1, 28, 28)), dim=-1).max()
        print(f"{run.evaluation.headline.value:.1%} of the test images; a black image is one class to {confidence:.0%}")


if __name__ == "__main__":
    main()
