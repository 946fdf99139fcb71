"""The `train` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The `train` section: how long, on what, and what is kept."""

    task: str = "classify"
    """What is learned: classify, classes or labels; mae, the pixels of hidden patches, without labels (`vitrail pretrain`)."""
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
