"""Swin Transformer checkpoints of timm, torchvision, transformers and the paper's code: recognise, load and rename."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail.models.receipt import Entry, Status
from vitrail.models.swin import Swin
from vitrail.models.windows import resize_bias_table
from vitrail.settings import configured
from vitrail.settings.swin import SwinConfig
from vitrail.weights.adapt import adapt_channels, copy_like
from vitrail.weights.card import attach_card
from vitrail.weights.libraries import LIBRARIES
from vitrail.weights.read import Checkpoint
from vitrail.weights.targets import rename_swin

Names = Callable[[str], tuple[str, ...]]
Shape = tuple[int, ...]
_BUFFERS = re.compile(r"relative_position_index$|attn_mask$")  # computed, in files of some versions
LAYOUTS = tuple(layout for library in LIBRARIES.values() for layout in library.swin_layouts)
WRITES: dict[str, Names] = {layout.name: layout.names for layout in reversed(LAYOUTS)}
"""Our names to those that each library has today."""


def names_of(keys: Mapping[str, Any]) -> tuple[str, Names] | None:
    """Return the library whose names a file has, and the function from ours to them; None for no Swin Transformer."""
    return next(
        ((name, names) for name, names, shows in LAYOUTS if all(names(one)[0] in keys for one in shows)),
        None,
    )


# --------------------------------------------------------------------------------------------------------------------
# Reading


def infer(shapes: Mapping[str, Shape], names: Names, *, img_size: Any) -> SwinConfig:
    """Infer the config of the model in a file. Raises ValueError for tensors that make no Swin Transformer."""

    def shape(name: str) -> Shape:
        theirs = names(name)
        if theirs[0] not in shapes:
            raise ValueError(f"this Swin Transformer has no {theirs[0]}, so it is not version 1; open it with its own library")
        return shapes[theirs[0]]

    def count(pattern: str) -> int:
        at = 0
        while names(pattern.format(at))[0] in shapes:
            at += 1
        return at

    stages = count("layers.{}.blocks.0.norm1.weight")
    dim, channels, patch, _ = shape("patch_embed.proj.weight")
    tables = [shape(f"layers.{stage}.blocks.0.attn.relative_position_bias_table") for stage in range(stages)]
    head = names("head.fc.weight")[0]
    return SwinConfig(
        img_size=img_size,
        patch_size=patch,
        in_channels=channels,
        num_classes=shapes[head][0] if head in shapes else 0,
        embed_dim=dim,
        depths=tuple(count(f"layers.{stage}.blocks.{{}}.norm1.weight") for stage in range(stages)),
        num_heads=tuple(heads for _, heads in tables),
        window_size=max((round(rows**0.5) + 1) // 2 for rows, _ in tables),  # timm's are smaller where a map is
        mlp_ratio=shape("layers.0.blocks.0.mlp.fc1.weight")[0] / dim,
    )


def is_swin(tensors: Mapping[str, Any]) -> bool:
    """Return whether tensors of these names are those of a Swin Transformer."""
    return names_of(tensors) is not None


def load_swin(
    checkpoint: Checkpoint,
    known: SwinConfig | None,
    changes: Mapping[str, Any],
    *,
    channels: Literal["repeat", "keep"] = "repeat",
    strict: bool = True,
) -> Swin:
    """Load a Swin Transformer from a checkpoint, in evaluation mode; see `vitrail.load`.

    `known` is the config of a model of ours. Windows of another side resize the relative position bias. Raises ValueError for
    tensors that make no Swin Transformer of version 1, or not all of one (with `strict=False`, fresh weights fill the gaps).
    """
    match = names_of(checkpoint.tensors)
    if match is None:
        raise ValueError(f"{checkpoint.file} is no Swin Transformer of timm, torchvision, transformers or the paper's code")
    library, names = match
    shapes = checkpoint.shapes
    stored = known or infer(shapes, names, img_size=own_size(checkpoint.config) or 224)
    config = configured(stored, dict(changes))
    with torch.device("meta"):
        model = Swin(config)
    state, entries, used = {}, [], set[str]()
    fresh = Swin(config).state_dict() if config.num_classes != stored.num_classes or not strict else {}
    for name, target in model.state_dict().items():
        theirs = names(name)
        head = name.startswith("head.")
        if head and config.num_classes != stored.num_classes:
            state[name] = fresh[name]
            used.update(theirs)
            entries.append(Entry(name, "new", target.numel(), head=True))
            continue
        if missing := [one for one in theirs if one not in shapes]:
            if not strict:
                state[name] = fresh[name]
                entries.append(Entry(name, "new", target.numel(), head=head))
                continue
            raise ValueError(f"{checkpoint.file} has no {missing[0]}, so the Swin Transformer is not complete")
        used.update(theirs)
        parts = [checkpoint.tensors[one] for one in theirs]
        value, status, note = adapt(name, parts, target, config, channels)
        if value.shape != target.shape:
            raise ValueError(
                f"{name} is {'x'.join(map(str, value.shape))} in {checkpoint.file}, and the model wants "
                f"{'x'.join(map(str, target.shape))}; leave the field out that asks for it"
            )
        state[name] = copy_like(value, target)
        entries.append(Entry(name, status, value.numel(), note, head=head))
    unused = [name for name in shapes if name not in used and not _BUFFERS.search(name)]
    entries += [Entry(name, "dropped", torch.Size(shapes[name]).numel(), head="head" in name) for name in unused]
    model.load_state_dict(state, strict=True, assign=True)
    attach_card(model, checkpoint, stored, entries, origin=f"{library}, Swin")
    return model.eval()


def adapt(
    name: str, parts: list[Tensor], target: Tensor, config: SwinConfig, channels: Literal["repeat", "keep"]
) -> tuple[Tensor, Status, str]:
    """Adapt one tensor of ours, from its parts in the file, to the config: its value, status and what was changed."""
    value = parts[0] if len(parts) == 1 else torch.cat(parts)
    if name.endswith("relative_position_bias_table") and value.shape[0] != target.shape[0]:
        window = (round(value.shape[0] ** 0.5) + 1) // 2
        value = resize_bias_table(value, window=config.window_size)
        return value, "resized", f"window {window} -> {config.window_size}"
    if name == "patch_embed.proj.weight" and value.shape[1] != config.in_channels:
        note = f"{value.shape[1]} -> {config.in_channels} channels"
        return adapt_channels(value, to=config.in_channels, how=channels), "adapted", note
    return value, "exact", "" if len(parts) == 1 else "query, key and value joined"


def own_size(config: Mapping[str, Any]) -> int | tuple[int, int] | None:
    """Return the image size in a config.json of timm or transformers."""
    pretrained = config.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, Mapping) else None
    if isinstance(size, list | tuple) and len(size) == 3:
        return int(size[1]), int(size[2])
    side = config.get("image_size")
    return side if isinstance(side, int) else None


# --------------------------------------------------------------------------------------------------------------------
# Writing


def export_state(model: Swin, to: str) -> dict[str, Tensor]:
    """Return the model's tensors under another library's names."""
    return rename_swin(model, WRITES[to])
