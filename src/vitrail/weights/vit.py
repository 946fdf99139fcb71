"""Plain ViTs of any library: infer the shape, rename and adapt every tensor, load, and attach the card."""

# D width · C channels · P patch · L patches

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.models import ViT
from vitrail.models.backbone import Backbone
from vitrail.models.modern import ModernViT
from vitrail.models.positions import resize_patch, resize_positions, sincos_2d
from vitrail.models.receipt import Entry, Receipt, Status
from vitrail.settings import Pair, ViTConfig, configured, pair
from vitrail.settings.modern import ModernConfig
from vitrail.weights.adapt import adapt_channels, copy_like
from vitrail.weights.arrange import ANSWERS, check_answers, pixel_transform
from vitrail.weights.card import attach_card
from vitrail.weights.eval_transform import EvalTransform
from vitrail.weights.infer import Inferred, infer, refuse_foreign
from vitrail.weights.libraries.vitrail import OURS
from vitrail.weights.read import Checkpoint
from vitrail.weights.recognise import Recognised, explain, recognise, unstack

BACKBONE_SHARE = 0.95
"""Minimum share of the backbone's parameters that must come from the file."""
HEADS = ("head.", "head_dist.", "pre_logits.")
Channels = Literal["repeat", "keep"]


def load_vit(
    checkpoint: Checkpoint, known: ViTConfig | None, changes: Mapping[str, Any], *, channels: Channels, strict: bool
) -> Backbone:
    """Load a plain ViT from a checkpoint; `known` is the config of a model of ours.

    With the answer norm_first false, it is a modern ViT, which can have its norms behind the sums.
    """
    answers = {name: value for name, value in changes.items() if name in ANSWERS}
    fields = {name: value for name, value in changes.items() if name not in ANSWERS}
    tensors = unstack(checkpoint.tensors)
    theirs = checkpoint.shapes if tensors is checkpoint.tensors else {name: tuple(t.shape) for name, t in tensors.items()}
    match = recognise(tensors, (OURS,)) if known else explain(tensors, theirs, checkpoint.names)
    if strict:
        refuse_foreign(match)
    answers = {**match.layout.arrangement, **answers}
    check_answers(answers)
    match = match.arranged(answers)
    overrides = {"heads": match.heads(theirs), **answers, **fields}
    stored = (
        of_ours(known)
        if known
        else infer(match.shapes(theirs), match.layout, config=checkpoint.config, overrides=overrides, prefix=match.prefix)
    )
    config = configured(stored.config, fields)
    with torch.device("meta"):
        model = ViT(config)
    state, entries = Adaptation(model, stored, match, tensors, theirs, channels, strict).made()
    if strict:
        refuse_gaps([entry for entry in entries if entry.name not in match.sources], stored.config, checkpoint.file)
    model.load_state_dict(state, strict=True, assign=True)  # the one place that loads
    model.reset_parameters(only={entry.name for entry in entries if entry.fresh})
    attach_vit_card(model.eval(), entries, checkpoint, match, stored, strict=strict, answered=pixel_transform(answers))
    return post_norm(model) if answers.get("norm_first") is False else model


def post_norm(model: ViT) -> ModernViT:
    """Return a model with the same tensors whose norms stand behind the sums: x = LN(x + MSA(x)) (Vaswani et al. 2017)."""
    if model.config.dist_token or model.config.patch_norm or model.config.stem != "patch":
        raise ValueError("post-norm blocks go with no distillation token, no patch_norm and a plain stem; leave them out")
    fields: dict[str, Any] = {"norm_position": "post", "rope": "none", "key_bias": model.config.qkv_bias}
    with torch.device("meta"):
        result = ModernViT(ModernConfig(**dataclasses.asdict(model.config), **fields)).eval()
    names = {name: re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name) for name in model.state_dict()}
    result.load_state_dict({names[name]: value for name, value in model.state_dict().items()}, strict=True, assign=True)
    result.card = model.card
    if isinstance(receipt := model.receipt, Receipt):
        entries = tuple(dataclasses.replace(entry, name=names.get(entry.name, entry.name)) for entry in receipt.entries)
        result.receipt = dataclasses.replace(receipt, entries=entries)
    return result


def of_ours(cfg: ViTConfig) -> Inferred:
    """Return the description of a model of ours, whose config states everything."""
    grid = tuple(side // patch for side, patch in zip(pair(cfg.img_size), pair(cfg.patch_size), strict=True))
    placed = () if cfg.no_embed_class else ("cls",) * cfg.class_token + ("dist",) * cfg.dist_token
    return Inferred(cfg, (grid[0], grid[1]), placed, ())


# --------------------------------------------------------------------------------------------------------------------
# Tensors


@dataclass
class Adaptation:
    """Adaptation of a file's tensors to a model for other images."""

    model: ViT
    """On the meta device: its shapes are the target."""
    stored: Inferred
    match: Recognised
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the file's tensors: dropped tensors are not read."""
    channels: Channels
    strict: bool
    _used: set[str] = field(default_factory=set)

    def made(self) -> tuple[dict[str, Tensor], tuple[Entry, ...]]:
        """Return every tensor of the model, and its entry in the receipt; one copy of the weights in all."""
        state: dict[str, Tensor] = {}
        entries: list[Entry] = []
        for name, slot in self.model.state_dict().items():
            value, status, note = self.one(name, slot)
            state[name] = torch.empty_like(slot, device="cpu") if value is None else copy_like(value, slot)
            entries.append(Entry(name, status, slot.numel(), note, head=name.startswith(HEADS)))
        return state, (*entries, *self.dropped())

    def one(self, name: str, slot: Tensor) -> tuple[Tensor | None, Status, str]:
        """Return the value for one tensor of the model (None: fresh), its status and what was changed."""
        if name == "pos_embed":
            return self.positions(slot)
        weight = f"{name.removesuffix('bias')}weight" if name.endswith(".bias") else None
        if weight is not None and weight not in self._used:  # a layer is made afresh as a whole
            return None, "new", ""
        if name not in self.match.sources:
            zero = slot.new_zeros(slot.shape, device="cpu")
            return (None, "new", "") if weight is None else (zero, "new", "zero: the file has none")
        value = self.match.sources[name].read(self.tensors, self.stored.config.num_heads)
        if slot.is_floating_point() and (not value.is_floating_point() or value.itemsize == 1):
            raise ValueError(f"{name} holds numbers of type {value.dtype}: quantised weights need the code that made them")
        status: Status = "exact"
        notes: list[str] = []
        if name == "patch_embed.proj.weight" or name == "patch_embed.stem.0.weight":
            value, status, notes = self.stem(value, slot)
        elif name in TOKENS and value.shape == slot.shape:
            moved = self.moved(TOKENS[name])
            if moved is not None:
                value, status, notes = value + moved, "adapted", ["its position added"]
        if value.shape != slot.shape:
            if self.strict and not self.replaced(name):
                theirs, ours = ("x".join(map(str, shape)) for shape in (value.shape, slot.shape))
                raise ValueError(
                    f"{name} is {theirs} in the file and {ours} in the model that is asked for; "
                    "leave the field out that changes it, or give strict=False for fresh weights there"
                )
            return None, "new", ""
        self._used.add(name)
        return value, status, ", ".join(notes)

    def replaced(self, name: str) -> bool:
        """Return whether a tensor that does not fit belongs to a part that the caller replaces: a head, registers."""
        return name.startswith(HEADS) or name == "reg_token"

    def stem(self, weight: Tensor, slot: Tensor) -> tuple[Tensor, Status, list[str]]:
        """Adapt the patch projection to other channels and other patches."""
        notes, status = [], "exact"
        old, new = tuple(weight.shape), tuple(slot.shape)
        if old != new and self.model.config.patch_norm:
            raise ValueError(
                "a stem with patch_norm keeps its channels and patch; leave in_channels and patch_size as in the file"
            )
        if old[1] != new[1]:
            weight, status = adapt_channels(weight, to=new[1], how=self.channels), "adapted"
            notes.append(f"{old[1]} -> {new[1]} channels")
        if old[2:] != new[2:] and self.model.config.stem == "patch":
            weight, status = resize_patch(weight, to=(new[2], new[3])), "adapted" if notes else "resized"
            notes.append(f"{old[2]}x{old[3]} -> {new[2]}x{new[3]}")
        return weight, status, notes  # type: ignore[return-value]

    def positions(self, slot: Tensor) -> tuple[Tensor | None, Status, str]:
        """Adapt the position embedding to the model's grid and to the prefix tokens that have a row in it."""
        grid, dim = self.model.grid, slot.shape[-1]
        front = torch.zeros(1, self.model.placed_tokens, dim)
        if self.model.config.pos_embed == "sincos2d":
            value = torch.cat([front, sincos_2d(grid, dim)[None]], dim=1)
            if self.stored.config.pos_embed != "sincos2d":
                return value, "new", "computed"
            self._used.add("pos_embed")
            return (value, "exact", "") if grid == self.stored.grid else (value, "resized", "computed")
        if "pos_embed" not in self.match.sources:
            if not self.match.layout.computes_positions:
                return None, "new", ""
            return torch.cat([front, sincos_of_files(grid, dim)], dim=1), "new", "computed, as its code does"
        table = self.match.sources["pos_embed"].read(self.tensors).reshape(1, -1, dim).float()
        self._used.add("pos_embed")
        own_rows = self.rows()
        kinds = ("cls", "dist")[: self.model.placed_tokens]
        here = resize_positions(table[:, len(self.stored.positions_for) :], old=self.stored.grid, new=grid, prefix=0)
        value = torch.cat([*(own_rows.get(kind, torch.zeros(1, 1, dim)) for kind in kinds), here], dim=1)
        if grid != self.stored.grid:
            sides = [f"{height}x{width}" for height, width in (self.stored.grid, grid)]
            return value, "resized", " -> ".join(sides)
        if tuple(own_rows) == kinds:
            return value, "exact", ""
        moved = any(getattr(self.model, name) is not None and self.moved(kind) is not None for name, kind in TOKENS.items())
        more = ", the others added to their tokens" if moved else ""
        return value, "adapted", f"{table.shape[1]} -> {value.shape[1]} rows{more}"

    def rows(self) -> dict[str, Float[Tensor, "1 n D"]]:
        """Return the file's positions of the prefix tokens, by the kind of token."""
        if "pos_embed" not in self.match.sources:
            return {}
        table = self.match.sources["pos_embed"].read(self.tensors)
        if table.ndim == 4:
            return {}
        rows, start = {}, 0
        for kind in dict.fromkeys(self.stored.positions_for):
            count = self.stored.positions_for.count(kind)
            rows[kind] = table[:, start : start + count].float()
            start += count
        return rows

    def moved(self, kind: str) -> Tensor | None:
        """Return the position of a token that has no row in the model: added to the token, it gives the same."""
        if self.model.placed_tokens and kind != "reg":
            return None
        return self.rows().get(kind)

    def dropped(self) -> Iterator[Entry]:
        """Yield the tensors of the file that are not in the model."""
        for name, source in self.match.sources.items():
            count = sum(math.prod(self.shapes[part]) for part in source.theirs)
            if name not in self._used and count:  # vit-pytorch's mean has a class token of no rows
                yield Entry(name, "dropped", count, head=name.startswith(HEADS))
        for name in (*self.match.foreign, *self.match.outside):
            yield Entry(name, "dropped", math.prod(self.shapes[name]))


TOKENS = {"cls_token": "cls", "dist_token": "dist", "reg_token": "reg"}


def sincos_of_files(grid: Pair, dim: int) -> Float[Tensor, "1 L D"]:
    """Compute the fixed positions of big_vision and SimpleViT, which their files omit (Beyer et al. 2022).

    As `models.positions.sincos_2d`, but the frequencies reach 1 / 10,000 with the last one.
    """
    omega = 1e4 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4 - 1))
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()[None]


def refuse_gaps(entries: Iterable[Entry], stored: ViTConfig, file: str) -> None:
    """Raise ValueError if one of `entries` is missing, in the backbone, that the model in the file has."""
    fresh = [entry.name for entry in entries if entry.fresh and not entry.head]
    if not fresh:
        return
    with torch.device("meta"):
        there = ViT(stored).state_dict()
    if missing := [name for name in fresh if name in there]:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        way = "give a whole one, or in Python give strict=False for fresh weights there"
        raise ValueError(f"{file} is not whole: it has nothing for {shown}; {way}")


# --------------------------------------------------------------------------------------------------------------------
# Card


def attach_vit_card(
    model: ViT,
    entries: tuple[Entry, ...],
    checkpoint: Checkpoint,
    match: Recognised,
    stored: Inferred,
    *,
    strict: bool,
    answered: EvalTransform | None = None,
) -> ViT:
    """Attach the card to the model. Raises ValueError, or warns, if too little of the backbone comes from the file."""
    notes = checkpoint.notes
    if match.others:
        shown = ", ".join(prefix.rstrip("./") or "without a prefix" for prefix in match.others)
        notes = (*notes, f"took {match.prefix.rstrip('./') or 'the one without a prefix'}; the file also holds {shown}")
    receipt = attach_card(
        model,
        checkpoint,
        stored.config,
        entries,
        origin=match.layout.name,
        notes=notes,
        assumed=stored.assumed,
        grid=stored.grid_source,
        answered=answered,
    )
    if receipt.backbone_share < BACKBONE_SHARE:
        fresh = [entry.name for entry in entries if entry.status == "new" and not entry.head]
        message = (
            f"only {receipt.backbone_share:.1%} of the backbone's parameters come from {checkpoint.file}, at least "
            f"{BACKBONE_SHARE:.0%} have to; fresh are {', '.join(fresh[:3])}{' …' if len(fresh) > 3 else ''}"
        )
        if strict:
            raise ValueError(f"{message}; leave the field out that asks for them, or give strict=False")
        warnings.warn(message, stacklevel=3)
    return model
