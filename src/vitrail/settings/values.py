"""Shared by the sections of settings: sides, suggestions for misspelt names, and fields of configs."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

Pair = tuple[int, int]
Config = TypeVar("Config")


def pair(value: int | Pair) -> Pair:
    """Return (height, width) of a side given as one int or as two."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def nearest(word: str, words: list[str]) -> str:
    """Return ' did you mean "x"?' for a word close to one of `words`, else ''."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


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
    """Return the config with the fields replaced. Raises ValueError for an unknown field."""
    check_names(fields, of=type(config))
    return dataclasses.replace(config, **fields)  # type: ignore[type-var]


def tupled(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert lists, as JSON has them, back to tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def check_names(fields: Iterable[str], *, of: type[Any]) -> None:
    """Raise ValueError for a name that is not a field of a family's config."""
    known = [f.name for f in dataclasses.fields(of)]
    for name in fields:
        if name not in known:
            suggestion = OTHER_SPELLINGS.get(name)
            hint = f'; did you mean "{suggestion}"?' if suggestion in known else nearest(name, known)
            raise ValueError(f'"{name}" is not a field of {of.__name__}{hint}')
