"""Convolutional networks in front of a hybrid ViT: images to a feature map.

"bit": the ResNet of Dosovitskiy et al. 2021, section 3.1, with GroupNorm (Wu & He 2018) and standardised filters (Qiao et al.
2019), norms behind the convolutions as in its published code. "resnet-d": the ResNet-D of He et al. 2019, with BatchNorm.
"patches": the convolutions of MobileCLIP's image encoder (Vasu et al. 2024), whose kernels are their strides.

State-dict keys are timm's.
"""

# B batch · C channels · H W feature map, of any size before and after a layer · D width

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.recompute import recomputed
from vitrail.settings.hybrid import CnnKind, HybridConfig

Map = Float[Tensor, "B _C _H _W"]
_GROUPS = 32
_RATIO = 4
"""Width of a bottleneck's output over that of its 3x3 convolution."""

# --------------------------------------------------------------------------------------------------------------------
# The ResNet of the paper


def same_pad(x: Map, *, kernel: int, stride: int, value: float = 0.0) -> Map:
    """Pad so that a convolution gives ⌈side / stride⌉ cells, TensorFlow's "SAME": an odd pixel goes to the right and below."""
    margins = []
    for side in (x.shape[-1], x.shape[-2]):
        missing = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        margins += [missing // 2, missing - missing // 2]
    return F.pad(x, margins, value=value) if any(margins) else x


class StdConv(nn.Conv2d):
    """Convolution whose filters have mean 0 and variance 1 in every pass (Qiao et al. 2019), padded as `same_pad`."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, cfg: HybridConfig) -> None:
        super().__init__(before, after, kernel, stride=stride, padding=(kernel - 1) // 2 if stride == 1 else 0, bias=False)
        self.google = cfg.cnn_eps == "google"

    def forward(self, x: Map) -> Map:
        if self.stride[0] > 1:
            x = same_pad(x, kernel=self.kernel_size[0], stride=self.stride[0])
        return F.conv2d(x, self.standardised(), None, self.stride, self.padding)

    def standardised(self) -> Float[Tensor, "D C h w"]:
        """Return the filters, less their mean and over their standard deviation."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = 1 / (variance.sqrt() + 1e-5) if self.google else (variance + 1e-8).rsqrt()
        return (self.weight - mean) * scale


def group_norm(width: int, cfg: HybridConfig) -> nn.GroupNorm:
    """Return a norm of 32 groups of channels."""
    return nn.GroupNorm(_GROUPS, width, eps=1e-6 if cfg.cnn_eps == "google" else 1e-5)


class BitShortcut(nn.Module):
    """Projection of what a bottleneck is added to, where its shape changes."""

    def __init__(self, before: int, after: int, *, stride: int, cfg: HybridConfig) -> None:
        super().__init__()
        self.conv = StdConv(before, after, 1, stride=stride, cfg=cfg)
        self.norm = group_norm(after, cfg)

    def forward(self, x: Map) -> Map:
        return self.norm(self.conv(x))


class BitBottleneck(nn.Module):
    """Residual block of three convolutions, 1x1, 3x3 and 1x1, with a norm behind each."""

    def __init__(self, before: int, after: int, *, stride: int, first: bool, cfg: HybridConfig) -> None:
        super().__init__()
        width = after // _RATIO
        self.downsample = BitShortcut(before, after, stride=stride, cfg=cfg) if first else nn.Identity()
        self.conv1 = StdConv(before, width, 1, cfg=cfg)
        self.norm1 = group_norm(width, cfg)
        self.conv2 = StdConv(width, width, 3, stride=stride, cfg=cfg)
        self.norm2 = group_norm(width, cfg)
        self.conv3 = StdConv(width, after, 1, cfg=cfg)
        self.norm3 = group_norm(after, cfg)

    def forward(self, x: Map) -> Map:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.downsample(x))


class BitRoot(nn.Module):
    """First layer: a convolution of 7x7 pixels and a maximum of 3x3, each of stride 2."""

    def __init__(self, cfg: HybridConfig) -> None:
        super().__init__()
        self.conv = StdConv(cfg.in_channels, cfg.cnn_width, 7, stride=2, cfg=cfg)
        self.norm = group_norm(cfg.cnn_width, cfg)

    def forward(self, x: Map) -> Map:
        return same_pool(F.relu(self.norm(self.conv(x))))


def same_pool(x: Map) -> Map:
    """Return the maximum of 3x3 cells, at every other one."""
    return F.max_pool2d(same_pad(x, kernel=3, stride=2, value=float("-inf")), 3, stride=2)


class BitStage(nn.Module):
    """Bottlenecks of one width; the first halves the map, except in the first stage."""

    def __init__(self, cfg: HybridConfig, stage: int) -> None:
        super().__init__()
        after, stride = stage_width(cfg, stage), 2 if stage else 1
        before = stage_width(cfg, stage - 1)
        self.blocks = nn.Sequential(
            *(
                BitBottleneck(after if at else before, after, stride=1 if at else stride, first=not at, cfg=cfg)
                for at in range(cfg.cnn_depths[stage])
            )
        )

    def forward(self, x: Map) -> Map:
        return self.blocks(x)


def stage_width(cfg: HybridConfig, stage: int) -> int:
    """Return the output channels of a stage of a ResNet; -1 is its first layer."""
    return cfg.cnn_width if stage < 0 else cfg.cnn_width * _RATIO * 2**stage


# --------------------------------------------------------------------------------------------------------------------
# ResNet-D


class Bottleneck(nn.Module):
    """Residual block of three convolutions with batch norms; a shortcut that halves the map takes means of 2x2 first."""

    def __init__(self, before: int, after: int, *, stride: int, first: bool) -> None:
        super().__init__()
        width = after // _RATIO
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        shortcut = nn.Sequential(pool, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
        self.downsample = shortcut if first else nn.Identity()

    def forward(self, x: Map) -> Map:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ConvBlock(nn.Sequential):
    """Convolution with a batch norm and GELU, or the last one of "patches", with a bias alone."""

    def __init__(self, before: int, after: int, *, side: int, last: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, side, stride=side, bias=last)
        if not last:
            self.bn = nn.BatchNorm2d(after)
            self.act = nn.GELU()


# --------------------------------------------------------------------------------------------------------------------
# The networks


class Cnn(nn.Module):
    """A convolutional network: a root, and stages that can be computed once more in the backward pass."""

    out_channels: int
    first_conv: str
    """Path of the convolution that takes the images."""
    stage_paths: tuple[str, ...] = ()
    """Paths of the stages."""
    root_paths: tuple[str, ...]
    """Paths of all before the stages."""

    def root(self, images: Map) -> Map:
        """Compute what comes before the stages."""
        raise NotImplementedError

    def forward(self, images: Map, *, recompute: bool = False) -> Map:
        """Return the feature map; with `recompute`, no stage keeps its activations for the backward pass."""
        x = self.root(images)
        for stage in self.stages_in_order():
            x = recomputed(stage, x) if recompute else stage(x)
        return x

    def stages_in_order(self) -> Iterator[nn.Module]:
        """Iterate over the stages."""
        return (self.get_submodule(path) for path in self.stage_paths)


class Bit(Cnn):
    """The paper's ResNet: a root and stages."""

    first_conv = "stem.conv"
    root_paths = ("stem",)

    def __init__(self, cfg: HybridConfig) -> None:
        super().__init__()
        self.stem = BitRoot(cfg)
        self.stages = nn.Sequential(*(BitStage(cfg, stage) for stage in range(len(cfg.cnn_depths))))
        self.stage_paths = tuple(f"stages.{stage}" for stage in range(len(cfg.cnn_depths)))
        self.out_channels = stage_width(cfg, len(cfg.cnn_depths) - 1)

    def root(self, images: Map) -> Map:
        return self.stem(images)


class BitAlone(Cnn):
    """The root of the paper's ResNet, without stages (R+Ti/16)."""

    first_conv = "conv"
    root_paths = ("conv", "norm")

    def __init__(self, cfg: HybridConfig) -> None:
        super().__init__()
        root = BitRoot(cfg)
        self.conv, self.norm, self.out_channels = root.conv, root.norm, cfg.cnn_width

    def root(self, images: Map) -> Map:
        return same_pool(F.relu(self.norm(self.conv(images))))


class ResNetD(Cnn):
    """A ResNet-D: three convolutions of 3x3 pixels, a maximum, and stages."""

    first_conv = "conv1.0"
    root_paths = ("conv1", "bn1")

    def __init__(self, cfg: HybridConfig) -> None:
        super().__init__()
        width, half = cfg.cnn_width, cfg.cnn_width // 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(cfg.in_channels, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, width, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(width)
        for stage, depth in enumerate(cfg.cnn_depths):
            before, after, stride = stage_width(cfg, stage - 1), stage_width(cfg, stage), 2 if stage else 1
            blocks = (
                Bottleneck(after if at else before, after, stride=1 if at else stride, first=not at) for at in range(depth)
            )
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stage_paths = tuple(f"layer{stage + 1}" for stage in range(len(cfg.cnn_depths)))
        self.out_channels = stage_width(cfg, len(cfg.cnn_depths) - 1)

    def root(self, images: Map) -> Map:
        return F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)


class ConvPatches(Cnn):
    """Convolutions of 4x4, 2x2 and 2x2 cells whose strides are their kernels: patches of 16x16 pixels, in three steps."""

    first_conv = "0.conv"
    root_paths = ("0", "1", "2")

    def __init__(self, cfg: HybridConfig) -> None:
        super().__init__()
        quarter = cfg.embed_dim // 4
        widths, sides = (cfg.in_channels, quarter, quarter, cfg.embed_dim), (4, 2, 2)
        for at, side in enumerate(sides):
            self.add_module(str(at), ConvBlock(widths[at], widths[at + 1], side=side, last=at == len(sides) - 1))
        self.out_channels = cfg.embed_dim

    def root(self, images: Map) -> Map:
        x = images
        for path in self.root_paths:
            x = self.get_submodule(path)(x)
        return x


KINDS: dict[str, CnnKind] = {
    Bit.first_conv: "bit",
    BitAlone.first_conv: "bit",
    ResNetD.first_conv: "resnet-d",
    ConvPatches.first_conv: "patches",
}
"""Kinds of network, by the path of the convolution that takes the images."""


def build_cnn(cfg: HybridConfig) -> Cnn:
    """Build the network of a config with random weights."""
    if cfg.cnn == "bit":
        return Bit(cfg) if cfg.cnn_depths else BitAlone(cfg)
    return ResNetD(cfg) if cfg.cnn == "resnet-d" else ConvPatches(cfg)


def reset_cnn(cnn: Cnn, only: set[str]) -> None:
    """Initialise the layers with tensors in `only`: convolutions by fan-out (He et al. 2015), norms as new.

    The last norm of a bottleneck starts at zero, so that the block is its shortcut at first (Goyal et al. 2017, section 5.1).
    """
    for path, module in cnn.named_modules():
        if not any(f"{path}.{name}" in only for name, _ in module.named_parameters(recurse=False)):
            continue
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel()
            nn.init.trunc_normal_(module.weight, std=(2 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            module.reset_parameters()
            if path.endswith((".norm3", ".bn3")):
                nn.init.zeros_(module.weight)
