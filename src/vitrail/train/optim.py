"""Optimizers, parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from vitrail.models.backbone import Backbone, Stage
from vitrail.settings import OptimConfig
from vitrail.train.muon import Muon

REFERENCE_BATCH = 1024
"""Batch size at which `optim.lr` is stated; the rate is scaled linearly with the batch (Goyal et al. 2017)."""
MUON_MOMENTUM = 0.95
"""Momentum of Muon (Jordan et al. 2024), whose updates are orthonormal and independent of the gradient's norm."""


# --------------------------------------------------------------------------------------------------------------------
# The learning rate over a run, as a share of its peak; progress runs from 0 to 1


def cosine(progress: float) -> float:
    """Cosine decay from 1 to 0 (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Linear decay from 1 to 0."""
    return 1 - progress


def constant(progress: float) -> float:
    """Constant 1."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "linear": linear, "constant": constant}


def lr_factor(progress: float, *, schedule: str, warmup: float) -> float:
    """Learning rate as a share of its peak: linear warm-up over the share `warmup` of the run, then the schedule."""
    if progress < warmup:
        return progress / warmup
    return SCHEDULES[schedule](min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 0.0)


# --------------------------------------------------------------------------------------------------------------------
# Groups


class ParameterRow(NamedTuple):
    """Optimizer, learning-rate factor and weight decay of one parameter."""

    name: str
    shape: tuple[int, ...]
    optimizer: str
    """Name of the optimizer; FROZEN for none."""
    lr_factor: float
    weight_decay: float


FROZEN = "frozen"


def group_table(model: Backbone, cfg: OptimConfig) -> list[ParameterRow]:
    """Table of parameter groups: optimizer, learning-rate factor and weight decay of every parameter.

    Vectors and the backbone's `no_decay` (tokens, positions, bias tables) are not decayed. With Muon, the blocks' matrices go
    to it and all else to AdamW. With layer_decay, block i of n gets layer_decay ** (n - i) and the stem
    layer_decay ** (n + 1). With freeze, the first blocks and all before them are frozen, as are parameters that need no
    gradient anyway. Raises ValueError for more frozen blocks than there are, and for "all" of none.
    """
    stages = model.stages()
    depth = sum(stage.block is not None for stage in stages)
    if cfg.layer_decay != 1 and not depth:
        raise ValueError(f"optim.layer_decay {cfg.layer_decay} needs a model with blocks; use 1.0")
    if cfg.freeze == "all" and not depth:  # a CNN's batch-norm statistics would still be updated
        raise ValueError('optim.freeze "all" needs a model with blocks; use 0, or `vitrail probe`, which trains a head alone')
    frozen = cfg.frozen(depth)
    if frozen > depth:
        has = f'{depth} block{"s" * (depth > 1)}; use "all" to train its head alone' if depth else "no blocks; use 0"
        raise ValueError(f"optim.freeze {cfg.freeze} is too much: the model has {has}")
    rows = []
    for name, parameter in model.named_parameters():
        stage, below = _stage_of(name, stages)
        if not parameter.requires_grad or (frozen and below > depth - frozen):
            rows.append(ParameterRow(name, tuple(parameter.shape), FROZEN, 0.0, 0.0))
            continue
        decayed = parameter.ndim > 1 and name not in model.no_decay
        matrix = stage.block is not None and parameter.ndim == 2 and decayed
        optimizer = {"adamw": "adamw", "sgd": "sgd", "muon": "muon" if matrix else "adamw"}[cfg.name]
        factor = cfg.layer_decay**below
        rows.append(ParameterRow(name, tuple(parameter.shape), optimizer, factor, cfg.weight_decay if decayed else 0.0))
    return rows


def _stage_of(parameter: str, stages: Sequence[Stage]) -> tuple[Stage, int]:
    """Return the stage of a parameter, and its depth below the head: 0 in the head, 1 in the last block."""
    index = next(index for index, stage in enumerate(stages) if stage.owns(parameter))
    behind = sum(stage.block is not None for stage in stages[index + 1 :])
    head = index > 0 and index == len(stages) - 1
    return stages[index], 0 if head else behind + 1


@dataclass(frozen=True)
class Optimizers:
    """One optimizer, or Muon and AdamW side by side, with the interface of one."""

    parts: tuple[Optimizer, ...]

    def set_lr(self, factor: float, *, model: float = 1.0) -> None:
        """Set each group's learning rate to a share of its peak; the groups of the model itself get `model` times that."""
        for group in self.groups():
            rate = group["peak_lr"] * factor * (1.0 if group["companion"] else model)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @property
    def recordable(self) -> bool:
        """True where all optimizers can read their learning rates from the device."""
        return all(isinstance(part, AdamW | Muon) for part in self.parts)

    def keep_rates_on(self, device: torch.device) -> None:
        """Keep the learning rates in tensors on the device: a recorded step would repeat the numbers of its recording."""
        for group in self.groups():
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(group["lr"], device=device)
            if "capturable" in group:
                group["capturable"] = True

    def state_tensors(self) -> list[Tensor]:
        """Return the tensors of all state, such as moments."""
        states = (state for part in self.parts for state in part.state.values())
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    def step(self) -> None:
        """Update the weights."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Drop gradients and state, to free memory after the last step."""
        self.zero_grad()
        for part in self.parts:
            part.state.clear()

    def groups(self) -> Iterable[dict[str, Any]]:
        """Return all parameter groups, each with its `peak_lr`, and `companion`: False for those of the model."""
        return (group for part in self.parts for group in part.param_groups)


def companion_table(companions: Mapping[str, nn.Module], cfg: OptimConfig) -> list[ParameterRow]:
    """Table of parameter groups of companions, modules beside a model: all that learn have factor 1.

    Those without gradients, such as a teacher's, are frozen. Norms, biases and tokens are not decayed. Muon is for a model's
    blocks; companions get AdamW.
    """
    kind = "sgd" if cfg.name == "sgd" else "adamw"
    rows = []
    for beside, module in companions.items():
        for name, parameter in module.named_parameters():
            decayed, shape = parameter.ndim > 1 and not name.endswith("token"), tuple(parameter.shape)
            if not parameter.requires_grad:
                rows.append(ParameterRow(f"{beside}.{name}", shape, FROZEN, 0.0, 0.0))
                continue
            rows.append(ParameterRow(f"{beside}.{name}", shape, kind, 1.0, cfg.weight_decay if decayed else 0.0))
    return rows


def build_optimizers(
    model: Backbone, cfg: OptimConfig, *, batch_size: int, companions: Mapping[str, nn.Module] | None = None
) -> Optimizers:
    """Build the optimizers of a model and its companions, with learning rates scaled to the batch.

    Every parameter is in exactly one group, or frozen: then its `requires_grad` is set to False.
    """
    beside = companions or {}
    parameters = dict(model.named_parameters())
    parameters |= {f"{one}.{name}": p for one, module in beside.items() for name, p in module.named_parameters()}
    groups: dict[str, dict[tuple[float, float, bool], list[Tensor]]] = {}
    tables = ((False, group_table(model, cfg)), (True, companion_table(beside, cfg)))
    for companion, row in ((companion, row) for companion, rows in tables for row in rows):
        if row.optimizer == FROZEN:
            parameters[row.name].requires_grad_(False)
        else:
            key = (row.lr_factor, row.weight_decay, companion)
            groups.setdefault(row.optimizer, {}).setdefault(key, []).append(parameters[row.name])
    learned = sum(p.requires_grad for p in parameters.values())
    assert sum(len(members) for kind in groups.values() for members in kind.values()) == learned

    peak = cfg.lr * batch_size / REFERENCE_BATCH
    parts = []
    for kind, members in groups.items():
        param_groups = [
            {
                "params": params,
                "lr": peak * factor,
                "peak_lr": peak * factor,
                "weight_decay": decay,
                "companion": companion,
            }
            for (factor, decay, companion), params in members.items()
        ]
        parts.append(_optimizer(kind, param_groups, cfg))
    return Optimizers(tuple(parts))


def _optimizer(kind: str, groups: list[dict[str, Any]], cfg: OptimConfig) -> Optimizer:
    if kind == "muon":  # updates as large as AdamW's, so that one learning rate serves both
        dtype = torch.float32 if cfg.muon_precision == "fp32" else torch.bfloat16  # an older run's "auto" was bf16
        return Muon(groups, dtype=dtype, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")
    if kind == "sgd":
        return SGD(groups, momentum=cfg.betas[0], nesterov=cfg.betas[0] > 0)
    return AdamW(groups, betas=cfg.betas, fused=True)
