"""Export to another library's class: whether it has such a model, and the same model in weights that it has places for.

Nothing here approximates. What a library has no setting for is rejected, unless other weights compute the same: a position of
zeros, a bias of zeros, LayerScale of ones, a position that is added to its token.
"""

# D width · M hidden width of the MLP · L patches · K classes

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitrail.models.backbone import Backbone
from vitrail.settings import Preprocessing, ViTConfig, pair
from vitrail.weights.library import FamilyLayout, Layout

State = Mapping[str, Tensor]
"""Tensors by our names."""
ANY = None
"""Every value of a field."""
GELUS = ("gelu", "gelu_tanh", "quick_gelu")

SIZES = ("img_size", "patch_size", "in_channels", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio")
"""Fields that every library has."""


class Inexpressible(ValueError):
    """A library has no setting for what a model has."""


# --------------------------------------------------------------------------------------------------------------------
# Which models a class can be


@dataclass(frozen=True)
class Class:
    """One class of another library, and the configs that it can be."""

    name: str
    values: Mapping[str, Collection[Any] | None] = field(default_factory=dict)
    """By field of ViTConfig: the values that it has a setting for. A field that is not here has its default."""
    square: tuple[str, ...] = ()
    """Fields whose two sides are equal there."""


def check(cfg: ViTConfig, target: Class) -> None:
    """Raise Inexpressible, in one line that names the field, for a model that the class can't be."""
    default, cfg = ViTConfig(), canonical(cfg)
    for f in dataclasses.fields(ViTConfig):
        value, allowed = getattr(cfg, f.name), target.values.get(f.name, (getattr(default, f.name),))
        if f.name in SIZES or f.name.endswith("_rate") or allowed is ANY or value in allowed:
            continue
        way = "; load it with norm_eps=1e-06, which computes nearly the same" if f.name == "norm_eps" else ""
        raise Inexpressible(f"{target.name} has no {f.name} {literal(value)}, only {' or '.join(map(literal, allowed))}{way}")
    for name in target.square:
        height, width = pair(getattr(cfg, name))
        if height != width:
            raise Inexpressible(f"{target.name} has no {name} {height}x{width}, only squares")


def require_head(cfg: ViTConfig, target: Class) -> None:
    """Raise Inexpressible for a model without a head."""
    if not cfg.num_classes:
        raise Inexpressible(f"{target.name} has no num_classes 0, only a head; load the model with num_classes=…")


def literal(value: Any) -> str:
    """Format a value for a message."""
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def same_names(config: Any, *names: str) -> dict[str, Any]:
    """Return fields of a config that a library calls by the same names."""
    return {name: getattr(config, name) for name in names}


def canonical(cfg: ViTConfig) -> ViTConfig:
    """Reset settings that have no effect on the model."""
    changes: dict[str, Any] = {}
    if cfg.head_dim is not None and cfg.head_dim * cfg.num_heads == cfg.embed_dim:
        changes["head_dim"] = None
    if cfg.pool == "cls" or not (cfg.class_token or cfg.reg_tokens):
        changes["pool_include_prefix"] = False
    if not cfg.class_token:
        changes["no_embed_class"] = False
    return dataclasses.replace(cfg, **changes)


def mlp_ratio(hidden: int, dim: int) -> float:
    """Return the MLP ratio from which a library that rounds down gets this hidden width."""
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


# --------------------------------------------------------------------------------------------------------------------
# The same model in other weights


def cpu_state(model: Backbone) -> dict[str, Tensor]:
    """Return the model's tensors on the CPU."""
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def preprocessing_of(model: Backbone) -> Preprocessing:
    """Return the model's preprocessing. Raises ValueError if it has none."""
    if model.preprocessing is None:
        raise ValueError("the model does not say what happens to its images; set model.preprocessing before it is converted")
    return model.preprocessing


def with_token_rows(state: State, cfg: ViTConfig, *, present: bool) -> tuple[dict[str, Tensor], ViTConfig]:
    """Add or remove the rows of class and distillation token in the position embedding; the model computes the same.

    A row that is added is zero; one that is removed is added to its token.
    """
    changed = dict(state)
    names = [name for name in ("cls_token", "dist_token") if name in state]
    if not names or cfg.no_embed_class is not present:
        return changed, cfg
    if "pos_embed" in changed and present:
        zeros = changed["pos_embed"].new_zeros(1, len(names), cfg.embed_dim)
        changed["pos_embed"] = torch.cat([zeros, changed["pos_embed"]], dim=1)
    elif "pos_embed" in changed:
        for row, name in enumerate(names):
            changed[name] = changed[name] + changed["pos_embed"][:, row : row + 1]
        changed["pos_embed"] = changed["pos_embed"][:, len(names) :].contiguous()
    return changed, dataclasses.replace(cfg, no_embed_class=not present)


def with_zeros(state: State, cfg: ViTConfig, *, biases: bool = True) -> dict[str, Tensor]:
    """Add zeros for what some libraries require: positions and, with `biases`, those of query, key and value."""
    filled, like = dict(state), state["patch_embed.proj.weight"]
    if "pos_embed" not in filled:
        (height, width), patch = pair(cfg.img_size), pair(cfg.patch_size)
        prefix = 0 if cfg.no_embed_class else cfg.class_token + cfg.dist_token
        filled["pos_embed"] = like.new_zeros(1, prefix + height // patch[0] * (width // patch[1]), cfg.embed_dim)
    if biases and not cfg.qkv_bias:
        filled |= {f"blocks.{i}.attn.qkv.bias": like.new_zeros(3 * cfg.embed_dim) for i in range(cfg.depth)}
    return filled


def rename(
    state: State,
    cfg: ViTConfig,
    layout: Layout,
    prefix: str = "",
    spelling: Mapping[str, str] | None = None,
    drops: str = r"(?!)",
) -> dict[str, Tensor]:
    """Rename our tensors to a layout's names and forms, by its table read backwards, then to an older `spelling` of them.

    Several tensors of ours that are one there (query, and key with value) are stacked. Names that match `drops` are left
    out. Raises Inexpressible for a tensor that the table does not have.
    """
    rows = {row.ours: row for row in reversed(layout.table)}
    renamed: dict[str, list[Tensor]] = {}
    for name, value in state.items():
        number = re.match(r"blocks\.(\d+)\.", name)
        row = rows.get(name if number is None else f"blocks.#.{name[number.end() :]}")
        if row is None:
            raise Inexpressible(f"{layout.name} has no place for {name}")
        for theirs, part in zip(row.theirs, row.form.write(value, cfg), strict=True):
            short = theirs if number is None else theirs.replace("#", number[1])
            for today, before in (spelling or {}).items():
                short = short.replace(today, before)
            if not re.match(drops, short):
                outside = layout.head_outside and name.startswith("head")
                renamed.setdefault(short if outside else prefix + short, []).append(part)
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in renamed.items()}


def rename_family(model: Backbone, layout: FamilyLayout) -> dict[str, Tensor]:
    """Rename a model's tensors to a layout's names and forms."""
    renamed: dict[str, Tensor] = {}
    for name, value in cpu_state(model).items():
        theirs, form = layout.names(name), layout.form(name)
        joined = value.chunk(len(theirs)) if len(theirs) > 1 else [value]  # a counter of batch norm has no axis
        parts = joined if form is None else form.write(value, model.config)
        renamed |= dict(zip(theirs, parts, strict=True))
    return renamed
