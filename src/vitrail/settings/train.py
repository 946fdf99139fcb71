"""The `train` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The `train` section: task, length, batches, device, evaluation and checkpoints."""

    task: str = "classify"
    """Task: classify, with classes or labels; mae, simmim, beit, dino, lejepa, which learn without (`vitrail pretrain`)."""
    epochs: float | None = None
    """Passes over the training images; set at most one of epochs, steps and minutes (none: 100 epochs)."""
    steps: int | None = None
    """Optimizer steps."""
    minutes: float | None = None
    """Minutes of training; the schedule is fitted to this time and always ends annealed."""
    min_epochs: float = 5.0
    """With minutes: least passes over the training images; a few measured steps tell what is possible. 0 measures nothing."""
    smaller: bool = True
    """With minutes: take a smaller model of the recipe where this machine would not reach min_epochs with the larger one."""
    batch_size: int = 256
    """Images per step."""
    accumulate: int = 1
    """Gradient accumulation: number of parts of a batch, computed one after the other; must divide batch_size."""
    start_size: int | None = None
    """Image side in pixels at the start, growing to model.img_size; null keeps the size constant."""
    size_stages: int = 1
    """With start_size: number of sizes before the last one, in equal increments."""
    full_size_from: float = 0.9
    """With start_size: share of the run after which images have their full size."""
    patch_sizes: tuple[int, ...] = ()
    """Patch sizes to draw from at each step, so that the model supports them all (FlexiViT: Beyer et al. 2023)."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """Number format; auto is bf16 if the device computes it faster than fp32; fp16 scales the loss, on CUDA; fp8 is bf16 with
    the blocks' linear layers in fp8, for GPUs of compute capability 8.9 or later (CPUs emulate it)."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    compile: bool = False
    """torch.compile each block."""
    graph: bool = True
    """On a GPU: record the step as a CUDA graph where launching its kernels takes longer than computing them."""
    checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass: less memory, more time."""
    ladder: bool = True
    """With model.weights: evaluate k-NN and a linear probe on frozen features first, for a tenth of the cost."""
    probe_head: bool = True
    """Initialise the head from the linear probe instead of randomly (LP-FT: Kumar et al. 2022)."""
    stop_early: bool = False
    """Stop after the linear probe if fine-tuning is not expected to beat it."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is evaluated and saved; 0 turns it off."""
    seed: int = 0
    """Random seed for initialisation, data order and augmentation."""
    eval_every: float = 1.0
    """Epochs between evaluations on the validation images; 0 evaluates at the end only."""
    checkpoint_every: float = 5.0
    """Minutes between checkpoints."""
    keep: int = 2
    """Number of checkpoints kept."""
    keep_best: bool = False
    """Also save, and keep, the checkpoint with the best evaluation; without labels, guard.stop does so too."""
    compare: bool = True
    """Without labels: compare the starting weights with those at the end; by k-NN and linear probe where there are classes."""
    shard: bool = False
    """With several processes: shard weights and optimizer state (FSDP2) instead of copying them to each (DDP)."""

    def __post_init__(self) -> None:
        lengths = [f"{name} {value}" for name, value in self.length().items() if value is not None]
        if len(lengths) > 1:
            raise ValueError(f"train.{' and train.'.join(lengths)}: only one of epochs, steps and minutes can be set")
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
        if self.min_epochs < 0:
            raise ValueError(f"train.min_epochs {self.min_epochs} must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay {self.ema_decay} must be at least 0 and below 1")
        if self.checkpoint_every <= 0:
            raise ValueError(f"train.checkpoint_every {self.checkpoint_every} must be above 0 minutes")
        if self.eval_every < 0:
            raise ValueError(f"train.eval_every {self.eval_every} must not be negative")

    def length(self) -> dict[str, float | int | None]:
        """Return epochs, steps and minutes, of which at most one is set."""
        return {"epochs": self.epochs, "steps": self.steps, "minutes": self.minutes}
