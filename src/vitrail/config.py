"""What a user sets: frozen dataclasses, the table of sizes, and names such as "B/16". Standard library only.

Each part of the code receives its own section and nothing else. A default lives here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from vitrail.settings.mae import MaeConfig

Pair = tuple[int, int]
Config = TypeVar("Config")


def pair(value: int | Pair) -> Pair:
    """(height, width) of a side given as one int or as two."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


# --------------------------------------------------------------------------------------------------------------------
# Sizes and names


class Size(NamedTuple):
    """One row of the table of sizes."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0


SIZES = {  #          width  depth  heads  MLP ratio       parameters at 224 px, 1000 classes
    "Ti": Size(192, 12, 3),  #                              5_717_416  at /16
    "S": Size(384, 12, 6),  #                              22_050_664  at /16
    "B": Size(768, 12, 12),  #                             86_567_656  at /16
    "L": Size(1024, 24, 16),  #                           304_326_632  at /16
    "H": Size(1280, 32, 16),  #                           632_045_800  at /14
    "g": Size(1408, 40, 16, 48 / 11),  #                1_012_611_432  at /14 (Zhai et al. 2022, table 2)
}
PATCHES = (4, 8, 14, 16, 32)
CUSTOM = "custom"
SCRATCH = "none"
"""Of model.weights: random weights, even where pretrained ones are within reach."""
_LONG_NAMES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}


def nearest(word: str, words: list[str]) -> str:
    """' did you mean "x"?' for a word that is close to one of `words`, else ''."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def parse_vit_name(name: str) -> dict[str, Any] | None:
    """Fields of ViTConfig that a name decides; None for a name of another form.

    "B/16", "Ti/4" and the field's spelling, "vit_base_patch16_224", are names of the same models. A patch may be any whole
    number; `PATCHES` lists the ones in common use. A "+" behind the size asks for the convolutional stem: "S+/16".
    "custom" is the name of a shape that has none, and decides nothing. Raises ValueError for a size that does not exist.
    """
    if name == CUSTOM:
        return {}
    if short := re.fullmatch(r"([A-Za-z]+)(\+?)/(\d+)", name):
        size, stem, patch = short.groups()
        fields: dict[str, Any] = {"patch_size": int(patch)}
        if stem:
            fields["stem"] = "conv"
    elif long := re.fullmatch(r"vit_([a-z]+)_patch(\d+)(?:_(\d+))?", name):
        size, fields = _LONG_NAMES.get(long[1], long[1]), {"patch_size": int(long[2])}
        if long[3]:
            fields["img_size"] = int(long[3])
    else:
        return None
    if size not in SIZES:
        fold = {s.lower(): s for s in SIZES}
        hint = f'; did you mean "{fold[size.lower()]}"?' if size.lower() in fold else ""
        raise ValueError(f'model "{name}": size "{size}" is none of {", ".join(SIZES)}{hint}')
    if fields["patch_size"] < 1:
        raise ValueError(f'model "{name}": the patch must be at least 1 pixel')
    return {**SIZES[size]._asdict(), **fields}


def vit_name(config: ViTConfig) -> str:
    """Name of a model's size and patch; "custom" for a shape that has none."""
    patch = pair(config.patch_size)
    shape = Size(config.embed_dim, config.depth, config.num_heads, config.mlp_ratio)
    names = [name for name, size in SIZES.items() if size == shape and patch[0] == patch[1]]
    return f"{names[0]}/{patch[0]}" if names else CUSTOM


# --------------------------------------------------------------------------------------------------------------------
# Sections


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that decides a plain Vision Transformer's shape. The defaults are B/16 of Dosovitskiy et al. 2021."""

    img_size: int | Pair = 224
    """Image side in pixels, or (height, width)."""
    patch_size: int | Pair = 16
    """Patch side in pixels, or (height, width)."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""
    embed_dim: int = 768
    """Width D of every token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads; must divide embed_dim, unless head_dim is set."""
    head_dim: int | None = None
    """Width of a head; None is embed_dim / num_heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over embed_dim."""
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"] = "gelu"
    """Two layers around GELU, its tanh form (JAX's default) or its sigmoid form (OpenAI's CLIP); or SwiGLU (Shazeer 2020)."""
    qkv_bias: bool = True
    """Bias in the query, key and value projection."""
    qk_norm: bool = False
    """LayerNorm on queries and keys, per head (Dehghani et al. 2023)."""
    init_values: float | None = None
    """LayerScale's initial value (Touvron et al. 2021); None leaves LayerScale out."""
    norm_eps: float = 1e-6
    """What every LayerNorm adds to the variance; transformers' ViT has 1e-12, CLIP 1e-5."""
    pre_norm: bool = False
    """LayerNorm between embedding and blocks, and no bias in the patches' projection (CLIP: Radford et al. 2021)."""
    patch_norm: bool = False
    """LayerNorm on each patch's pixels and on its token (the library vit-pytorch)."""
    final_norm: bool = True
    """LayerNorm behind the last block."""
    fc_norm: bool = False
    """The last LayerNorm stands behind the pooling instead of before it (BEiT, MAE's fine-tuning)."""
    class_token: bool = True
    """Prepend a learned class token."""
    dist_token: bool = False
    """Prepend DeiT's distillation token, with a head of its own (Touvron et al. 2021)."""
    reg_tokens: int = 0
    """Register tokens (Darcet et al. 2024)."""
    pos_embed: Literal["learn", "sincos2d", "none"] = "learn"
    """Position embedding: learned, fixed 2-D sine-cosine, or none."""
    no_embed_class: bool = False
    """No position for class and distillation token (DeiT III, FlexiViT). Registers never have one."""
    pool: Literal["cls", "avg", "cls+avg", "map"] = "cls"
    """What the head sees: the class token, the mean of the patch tokens, both side by side (DINOv2), or attention pooling."""
    pool_include_prefix: bool = False
    """Mean and attention pooling also look at the tokens before the patches."""
    head: Literal["linear", "mlp"] = "linear"
    """A linear head, or one hidden layer with tanh as in the paper's pre-training."""
    stem: Literal["patch", "conv"] = "patch"
    """One patch-sized convolution, or a stack of 3x3 convolutions (Xiao et al. 2021)."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    pos_drop_rate: float = 0.0
    """Dropout after the position embedding."""
    proj_drop_rate: float = 0.0
    """Dropout after the projections of attention and MLP."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights."""
    patch_drop_rate: float = 0.0
    """Share of patch tokens left out while training (Liu et al. 2023)."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; the blocks before it ramp up linearly (Huang et al. 2016)."""

    def __post_init__(self) -> None:
        for name, choices in choices_of_a_model().items():
            if getattr(self, name) not in choices:
                meant = nearest(str(getattr(self, name)), list(choices))
                raise ValueError(f'{name} "{getattr(self, name)}" is none of {", ".join(choices)}{meant}')
        for name in ("img_size", "patch_size"):
            if min(pair(getattr(self, name))) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1 pixel")
        for name in ("in_channels", "embed_dim", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim {self.head_dim} must be at least 1")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps {self.norm_eps} must be above 0")
        for name in ("num_classes", "depth", "reg_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative")
        if self.embed_dim % self.num_heads and (self.head_dim is None or self.pool == "map"):
            fits = max(1, round(self.embed_dim / self.num_heads)) * self.num_heads
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}; use {fits}")
        if self.pool in ("cls", "cls+avg") and not self.class_token:
            raise ValueError(f'pool "{self.pool}" needs class_token true; use pool "avg" or "map" without a class token')
        if self.pool == "cls+avg" and (self.fc_norm or self.dist_token):
            raise ValueError('pool "cls+avg" goes neither with fc_norm nor with dist_token; use pool "cls" or "avg"')
        if self.fc_norm and not self.final_norm:
            raise ValueError("fc_norm true places the last norm, and final_norm false leaves it out; set one of them")
        if self.patch_norm and self.stem != "patch":
            raise ValueError(f'patch_norm true needs stem "patch", not "{self.stem}"')
        if self.dist_token and not self.class_token:
            raise ValueError("dist_token true needs class_token true")
        if self.pos_embed == "sincos2d" and self.embed_dim % 4:
            raise ValueError(f'embed_dim {self.embed_dim} is not a multiple of 4, which pos_embed "sincos2d" needs')
        for f in dataclasses.fields(self):
            if f.name.endswith("_rate") and not 0 <= getattr(self, f.name) < 1:
                raise ValueError(f"{f.name} {getattr(self, f.name)} must be at least 0 and below 1")


@functools.cache
def choices_of_a_model() -> dict[str, tuple[str, ...]]:
    """The words that each field of ViTConfig takes, for those that take words."""
    return {name: get_args(hint) for name, hint in get_type_hints(ViTConfig).items() if get_origin(hint) is Literal}


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The `model` section of any family: a name, weights, what follows from the data, and the fields of the family's config.

    A subclass is a family's config with these fields added; `config_type` names that config.
    """

    config_type: ClassVar[type[Any]]
    name: str
    """Name of the model. It starts the section afresh."""
    weights: str | None = None
    """Checkpoint to start from: a Hub id, a file, a folder. The shape is then the checkpoint's; null starts at random."""
    img_size: int | Pair = 224
    """Image side in pixels, or (height, width)."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""

    def shape(self) -> Any:
        """The family's config: the part of the section that the model is built from."""
        return self.config_type(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self.config_type)})


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ViTConfig, ModelSection):
    """The `model` section: what the Transformer looks like. A name starts it afresh."""

    config_type = ViTConfig
    name: str = "B/16"
    """A size and a patch, "Ti/4" to "g/14"; "S+/16" has the convolutional stem; "swin_t" to "swin_l" are Swin Transformers;
    "torchvision:resnet50" and "timm:…" models of those libraries. The other fields change one thing each."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `data` section: which images, and how they come in."""

    path: str = "fashion-sample"
    """A named set or a folder."""
    val_fraction: float = 0.1
    """Share of the training images held out for validation where the set has no validation split."""
    mean: tuple[float, ...] | None = None
    """Of each channel, for pixels from 0 to 1; null takes the checkpoint's, or without one the data set's."""
    std: tuple[float, ...] | None = None
    """Of each channel; null as for mean."""
    crop_pct: float | None = None
    """Evaluation view: the centre crop's share of the resized image; null as for mean."""
    crop_mode: Literal["center", "squash"] | None = None
    """Evaluation view: keep the image's shape and cut, or squash it; null as for mean."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Filter of the evaluation view; null as for mean."""
    range: Literal["auto", "full"] | tuple[float, float] = "auto"
    """Values of more than 8 bits that become black and white; auto measures them, full is the whole range of their type."""
    balance: Literal["none", "sampler", "loss"] = "none"
    """For classes of unequal size: draw each class equally often, or weigh each class's loss by its rarity."""
    workers: int = -1
    """Loader processes for sets that do not fit memory_gb; -1 takes the number of cores."""
    memory_gb: float = 2.0
    """A set whose decoded images need less than this lives in memory."""
    max_bad: float = 0.01
    """Share of unreadable files above which training refuses to start."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"data.val_fraction {self.val_fraction} must be at least 0 and below 1")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"data.max_bad {self.max_bad} must be between 0 and 1")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"data.crop_pct {self.crop_pct} must be above 0, and at most 1")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"data.std {self.std} must be above 0")
        if not isinstance(self.range, str) and not self.range[0] < self.range[1]:
            raise ValueError(f"data.range {list(self.range)} must be two numbers, the smaller first")
        if self.memory_gb < 0:
            raise ValueError(f"data.memory_gb {self.memory_gb} must not be negative")


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """RandAugment's policy (Cubuk et al. 2020), in the increasing form of the `rand-m9-mstd0.5-inc1` family."""

    n: int = 2
    """Operations an image."""
    m: float = 9.0
    """Magnitude, 0 to 10."""
    mstd: float = 0.5
    """Standard deviation of the magnitude."""

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"augment.rand_augment.n {self.n} must not be negative; null turns RandAugment off")
        if not 0 <= self.m <= 10 or self.mstd < 0:
            raise ValueError(f"augment.rand_augment: m {self.m} must be between 0 and 10, and mstd {self.mstd} not negative")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The `augment` section: every draw is fresh for every image."""

    crop: Literal["resized", "pad", "none"] = "resized"
    """Random resized crop, a crop of the zero-padded image, or the evaluation view."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: least and greatest share of the area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: least and greatest ratio of width to height."""
    crop_pad: int = 4
    """Crop with padding: pixels added on each side."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation factors are drawn from 1 ± this."""
    rand_augment: RandAugment | None = None
    """RandAugment, or null."""
    three_augment: bool = False
    """One of grey, solarise, blur (Touvron et al. 2022)."""
    repeats: int = 1
    """Times that an image stands in a batch, each time augmented anew (Hoffer et al. 2020)."""
    erase_prob: float = 0.0
    """Probability of random erasing, pixel mode (Zhong et al. 2020)."""
    mixup_alpha: float = 0.0
    """Mixup's Beta parameter (Zhang et al. 2018); 0 turns it off."""
    cutmix_alpha: float = 0.0
    """CutMix's Beta parameter (Yun et al. 2019); 0 turns it off."""
    mixup_prob: float = 1.0
    """Probability that an image is mixed at all."""
    switch_prob: float = 0.5
    """Probability of cutmix rather than mixup where both are on."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"augment.crop_scale {self.crop_scale} must be two numbers, 0 < least <= greatest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"augment.crop_ratio {self.crop_ratio} must be two numbers, 0 < least <= greatest")
        if self.repeats < 1:
            raise ValueError(f"augment.repeats {self.repeats} must be at least 1")
        for name in ("flip", "erase_prob", "mixup_prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} {getattr(self, name)} must be between 0 and 1")
        for name in ("crop_pad", "color_jitter", "mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} {getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The `optim` section: how the weights move."""

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    """Muon moves the blocks' matrices and leaves the rest to AdamW."""
    lr: float = 1e-3
    """Peak learning rate at batch 1024; scaled linearly with the batch."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on norms, biases, tokens and the position embedding."""
    layer_decay: float = 1.0
    """Factor per block, going down; 0.65 to 0.85 when fine-tuning."""
    freeze: int | Literal["all"] = 0
    """Blocks, counted from the first, that do not learn, nor does the embedding before them; "all" leaves norm and head."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates; SGD takes the first as momentum."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises; 1 and above is a number of steps."""
    clip_norm: float | None = 1.0
    """Greatest norm of the gradient; null turns clipping off."""
    loss: Literal["ce", "bce"] = "ce"
    """Cross-entropy over all classes, or binary cross-entropy of each class (Wightman et al. 2021)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        for name in ("lr", "layer_decay"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name} {getattr(self, name)} must be above 0")
        for name in ("weight_decay", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} {getattr(self, name)} must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas {self.betas} must be at least 0 and below 1")
        if self.freeze != "all" and self.freeze < 0:
            raise ValueError(f"optim.freeze {self.freeze} must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"optim.label_smoothing {self.label_smoothing} must be at least 0 and below 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm {self.clip_norm} must be above 0, or null")

    def frozen(self, depth: int) -> int:
        """How many of `depth` blocks do not learn."""
        return depth if self.freeze == "all" else self.freeze


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The `distill` section: a teacher beside the labels (DeiT: Touvron et al. 2021)."""

    teacher: str | None = None
    """What `vitrail.load` takes, a run's folder above all; or "torchvision:regnet_y_16gf", "timm:…". Null: no teacher."""
    kind: Literal["hard", "soft"] = "hard"
    """Learn the teacher's decision, or its probabilities."""
    alpha: float = 0.5
    """The teacher's share of the loss."""
    tau: float = 3.0
    """Temperature of soft distillation."""
    once: bool = False
    """Ask the teacher about each image once, as it is, and mix its answers as the labels are (cf. Shen & Xing 2022).

    It then costs one pass over the images instead of a forward pass at every step, but does not see what crops, colours and
    erasing did to them. The answers take two bytes an image and class, and the pass is part of `train.minutes`.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"distill.alpha {self.alpha} must be between 0 and 1")
        if self.tau <= 0:
            raise ValueError(f"distill.tau {self.tau} must be above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The `train` section: how long, on what, and what is kept."""

    task: Literal["classify", "mae"] = "classify"
    """What is learned: classes or labels; or with mae the pixels of hidden patches, without labels (`vitrail pretrain`)."""
    epochs: float | None = None
    """Passes over the training images. One of epochs, steps and minutes is set; with none, 100 epochs."""
    steps: int | None = None
    """Optimizer steps."""
    minutes: float | None = None
    """Minutes of training; the schedule is fitted to them and always ends annealed."""
    batch_size: int = 256
    """Images a step."""
    accumulate: int = 1
    """Parts that a step's batch is computed in, one after the other; must divide it."""
    start_size: int | None = None
    """Side of the images in pixels at the start; they end at model.img_size. Null: the same size all along."""
    size_stages: int = 1
    """With start_size: sizes before the last one, going up evenly."""
    full_size_from: float = 0.9
    """With start_size: share of the run from which images have their full size."""
    patch_sizes: tuple[int, ...] = ()
    """Patches to draw from at each step, so that the model serves them all (FlexiViT: Beyer et al. 2023)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto takes bf16 where the device computes it faster than fp32; fp16 scales the loss, on CUDA."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    compile: bool = False
    """torch.compile each block."""
    checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass: less memory, more time."""
    ladder: bool = True
    """With model.weights: k-NN and a linear probe on frozen features come first, for a tenth of the cost."""
    probe_head: bool = True
    """The head starts as the ladder's probe, not from random weights (LP-FT: Kumar et al. 2022)."""
    stop_early: bool = False
    """End at the probe where fine-tuning can't be expected to beat it."""
    ema_decay: float = 0.0
    """Decay of the running mean of the weights, which is what is evaluated and saved; 0 turns it off."""
    seed: int = 0
    """Of the weights, the order and every draw."""
    eval_every: float = 1.0
    """Epochs between evaluations on the validation images; 0 evaluates at the end only."""
    checkpoint_every: float = 5.0
    """Minutes between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    keep_best: bool = False
    """Also save, and keep, the checkpoint with the best evaluation."""
    shard: bool = False
    """With several processes: each keeps a part of every weight and of its optimizer state (FSDP2), not all of them (DDP)."""

    def __post_init__(self) -> None:
        given = [f"{name} {value}" for name, value in self.length().items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"train.{' and train.'.join(given)}: only one of epochs, steps and minutes can be set")
        for name, value in self.length().items():
            if value is not None and value <= 0:
                raise ValueError(f"train.{name} {value} must be above 0")
        for name in ("batch_size", "keep", "accumulate", "size_stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} {getattr(self, name)} must be at least 1")
        if self.batch_size % self.accumulate:
            near = max(n for n in range(1, self.accumulate + 1) if self.batch_size % n == 0)
            raise ValueError(f"train.accumulate {self.accumulate} does not divide batch_size {self.batch_size}; use {near}")
        if not 0 < self.full_size_from <= 1:
            raise ValueError(f"train.full_size_from {self.full_size_from} must be above 0, and at most 1")
        if any(side < 1 for side in (*self.patch_sizes, self.start_size or 1)):
            raise ValueError(f"train: start_size {self.start_size} and patch_sizes {self.patch_sizes} must be at least 1 pixel")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay {self.ema_decay} must be at least 0 and below 1")
        if self.checkpoint_every <= 0:
            raise ValueError(f"train.checkpoint_every {self.checkpoint_every} must be above 0 minutes")
        if self.eval_every < 0:
            raise ValueError(f"train.eval_every {self.eval_every} must not be negative")

    def length(self) -> dict[str, float | int | None]:
        """The three ways to say how long a run is, of which one is set."""
        return {"epochs": self.epochs, "steps": self.steps, "minutes": self.minutes}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a run is made of."""

    model: ModelSection = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    mae: MaeConfig = field(default_factory=MaeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to an image before the model; it travels with the weights."""

    img_size: Pair
    """(height, width) the model sees."""
    in_channels: int
    """1 is grey, 3 is RGB, others are the bands of the files."""
    mean: tuple[float, ...]
    """Of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...]
    """Of each channel, for pixels from 0 to 1."""
    crop_pct: float = 1.0
    """The centre crop's share of the resized image."""
    crop_mode: Literal["center", "squash"] = "center"
    """The resize keeps the image's shape, and the crop cuts off what juts out; or it gives every image the crop's shape."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Filter of the resize."""
    range: tuple[float, float] | None = None
    """Values of more than 8 bits that become black and white; null is the whole range of their type."""


OTHER_SPELLINGS = {  # what other libraries call our fields
    "image_size": "img_size",
    "input_size": "img_size",
    "in_chans": "in_channels",
    "num_channels": "in_channels",
    "channels": "in_channels",
    "n_classes": "num_classes",
    "num_labels": "num_classes",
    "dim": "embed_dim",
    "hidden_size": "embed_dim",
    "num_layers": "depth",
    "num_hidden_layers": "depth",
    "heads": "num_heads",
    "num_attention_heads": "num_heads",
    "dropout": "drop_rate",
    "drop": "drop_rate",
    "hidden_dropout_prob": "proj_drop_rate",
    "attention_dropout": "attn_drop_rate",
    "drop_path": "drop_path_rate",
    "layer_scale_init_value": "init_values",
    "layerscale_value": "init_values",
    "global_pool": "pool",
    "num_registers": "reg_tokens",
    "num_register_tokens": "reg_tokens",
    "learning_rate": "lr",
    "wd": "weight_decay",
    "opt": "name",
    "smoothing": "label_smoothing",
    "clip_grad": "clip_norm",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "reprob": "erase_prob",
    "model_ema_decay": "ema_decay",
    "num_epochs": "epochs",
    "amp": "precision",
    "num_workers": "workers",
}


def configured(config: Config, fields: dict[str, Any]) -> Config:
    """The config with the fields put in. Raises ValueError for a field that does not exist."""
    check_names(fields, of=type(config))
    return dataclasses.replace(config, **fields)  # type: ignore[type-var]


def tupled(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def check_names(fields: Iterable[str], *, of: type[Any] = ViTConfig) -> None:
    """Raises ValueError for a name that is no field of a family's config."""
    known = [f.name for f in dataclasses.fields(of)]
    for name in fields:
        if name not in known:
            meant = OTHER_SPELLINGS.get(name)
            hint = f'; did you mean "{meant}"?' if meant in known else nearest(name, known)
            raise ValueError(f'"{name}" is not a field of {of.__name__}{hint}')
