"""Swin Transformer checkpoints of timm, torchvision, transformers and the paper's code: recognised, read and written back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail.config import Preprocessing, configured, pair
from vitrail.models.receipt import Entry, Receipt
from vitrail.models.swin import Swin
from vitrail.models.windows import relative_index, resize_bias_table
from vitrail.settings.swin import SwinConfig
from vitrail.weights.adapt import adapt_channels
from vitrail.weights.preprocess import preprocessing_for
from vitrail.weights.read import Checkpoint
from vitrail.weights.targets import Inexpressible, Plan, image_processor, labels_of, sides

Library = Literal["timm", "torchvision", "transformers", "Microsoft"]
Shape = tuple[int, ...]
_BUFFERS = re.compile(r"relative_position_index$|attn_mask$")  # computed, in files of some versions


# --------------------------------------------------------------------------------------------------------------------
# Names: ours, which are timm's, to those of each library; three are joined to one


def timm_names(name: str) -> tuple[str, ...]:
    """timm's name, which is ours."""
    return (name,)


def microsoft_names(name: str) -> tuple[str, ...]:
    """The name in the paper's own files, and in timm's before version 0.9: merging stands behind a stage."""
    if found := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return (f"layers.{int(found[1]) - 1}.downsample.{found[2]}",)
    return (name.replace("head.fc.", "head."),)


def torchvision_names(name: str) -> tuple[str, ...]:
    """torchvision's name: stages and mergings take turns in one list."""
    if found := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return (f"features.{2 * int(found[1])}.{found[2]}",)
    if found := re.fullmatch(r"layers\.(\d+)\.blocks\.(.*)", name):
        rest = found[2].replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
        return (f"features.{2 * int(found[1]) + 1}.{rest}",)
    name = name.replace("patch_embed.proj.", "features.0.0.").replace("patch_embed.norm.", "features.0.2.")
    return (name.replace("head.fc.", "head."),)


def transformers_names(name: str) -> tuple[str, ...]:
    """The names in transformers from version 5."""
    if found := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return (f"swin.encoder.layers.{int(found[1]) - 1}.downsample.{found[2]}",)
    if found := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.(.*)", name):
        block, part = f"swin.encoder.layers.{found[1]}.blocks.{found[2]}", found[3]
        if part.startswith("attn.qkv."):
            return tuple(f"{block}.attention.{which}_proj.{part.rpartition('.')[2]}" for which in "qkv")
        for ours, theirs in (
            ("attn.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
            ("attn.proj.", "attention.o_proj."),
            ("norm1.", "layernorm_before."),
            ("norm2.", "layernorm_after."),
        ):
            part = part.replace(ours, theirs)
        return (f"{block}.{part}",)
    name = name.replace("patch_embed.proj.", "swin.embeddings.patch_embeddings.projection.")
    name = name.replace("patch_embed.norm.", "swin.embeddings.norm.").replace("head.fc.", "classifier.")
    return (re.sub(r"^norm\.", "swin.layernorm.", name),)


def transformers_4_names(name: str) -> tuple[str, ...]:
    """The names in transformers before version 5, which are those of the files on the Hub."""
    table = ("attention.relative_position_bias.relative_position_bias_table", "attention.self.relative_position_bias_table")
    old = {
        table[0]: table[1],
        "attention.q_proj.": "attention.self.query.",
        "attention.k_proj.": "attention.self.key.",
        "attention.v_proj.": "attention.self.value.",
        "attention.o_proj.": "attention.output.dense.",
        "mlp.fc1.": "intermediate.dense.",
        "mlp.fc2.": "output.dense.",
    }
    names = transformers_names(name)
    for new, before in old.items():
        names = tuple(one.replace(new, before) for one in names)
    return names


Names = Callable[[str], tuple[str, ...]]
WRITES: dict[Library, Names] = {
    "timm": timm_names,
    "torchvision": torchvision_names,
    "transformers": transformers_names,
    "Microsoft": microsoft_names,
}


def names_of(keys: Mapping[str, Any]) -> tuple[Library, Names] | None:
    """Whose names a file has, and how ours become theirs; None for no Swin Transformer."""
    if "swin.embeddings.patch_embeddings.projection.weight" in keys:
        new = any("attention.q_proj." in key for key in keys)
        return "transformers", transformers_names if new else transformers_4_names
    if "features.1.0.attn.relative_position_bias_table" in keys:
        return ("torchvision", torchvision_names) if "features.2.reduction.weight" in keys else None
    if "layers.0.blocks.0.attn.relative_position_bias_table" in keys:
        return ("Microsoft", microsoft_names) if "layers.0.downsample.reduction.weight" in keys else ("timm", timm_names)
    return None


# --------------------------------------------------------------------------------------------------------------------
# Reading


def infer(shapes: Mapping[str, Shape], names: Names, *, img_size: Any) -> SwinConfig:
    """The config of the model in a file. Raises ValueError for tensors that make no Swin Transformer."""

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
    """Whether tensors of these names make a Swin Transformer."""
    return names_of(tensors) is not None


def load_swin(
    checkpoint: Checkpoint,
    known: SwinConfig | None,
    changes: Mapping[str, Any],
    *,
    channels: Literal["repeat", "keep"] = "repeat",
    strict: bool = True,
) -> Swin:
    """A Swin Transformer with the weights of a checkpoint, in evaluation mode; see `vitrail.load`.

    `known` is the config of a model of ours. Windows of another side resize the relative position bias. Raises ValueError for
    tensors that make no Swin Transformer of version 1, or not all of one (with `strict=False`, fresh weights fill the gaps).
    """
    found = names_of(checkpoint.tensors)
    if found is None:
        raise ValueError(f"{checkpoint.file} is no Swin Transformer of timm, torchvision, transformers or the paper's code")
    library, names = found
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
        value = (parts[0] if len(parts) == 1 else torch.cat(parts)).float()
        status, note = ("exact", "") if len(parts) == 1 else ("exact", "query, key and value joined")
        if name.endswith("relative_position_bias_table") and value.shape[0] != target.shape[0]:
            old = (round(value.shape[0] ** 0.5) + 1) // 2
            value = resize_bias_table(value, window=config.window_size)
            status, note = "resized", f"window {old} -> {config.window_size}"
        elif name == "patch_embed.proj.weight" and value.shape[1] != config.in_channels:
            note = f"{value.shape[1]} -> {config.in_channels} channels"
            value, status = adapt_channels(value, to=config.in_channels, how=channels), "adapted"
        if value.shape != target.shape:
            raise ValueError(
                f"{name} is {'x'.join(map(str, value.shape))} in {checkpoint.file}, and the model wants "
                f"{'x'.join(map(str, target.shape))}; leave the field out that asks for it"
            )
        state[name] = value
        entries.append(Entry(name, status, value.numel(), note, head=head))  # type: ignore[arg-type]
    unused = [name for name in shapes if name not in used and not _BUFFERS.search(name)]
    entries += [Entry(name, "dropped", torch.Size(shapes[name]).numel(), head="head" in name) for name in unused]
    model.load_state_dict(state, strict=True, assign=True)
    return documented(model, checkpoint, library, stored, tuple(entries))


def documented(model: Swin, checkpoint: Checkpoint, library: Library, stored: SwinConfig, entries: tuple[Entry, ...]) -> Swin:
    """The model with its preprocessing, classes and receipt."""
    given = preprocessing_for(
        img_size=pair(model.config.img_size),
        in_channels=model.config.in_channels,
        num_classes=model.config.num_classes if model.config.num_classes == stored.num_classes else -1,
        config=checkpoint.config,
        preprocessor=checkpoint.preprocessor,
        origin=f"{library} swin",
        file_img_size=pair(stored.img_size),
    )
    receipt = Receipt(
        origin=f"{library}, Swin",
        file=checkpoint.file,
        sha256=checkpoint.sha256,
        licence=checkpoint.licence,
        entries=entries,
        notes=checkpoint.notes,
        preprocessing=given.source,
    )
    model.card = given.card(receipt)
    return model.eval()


def own_size(config: Mapping[str, Any]) -> int | tuple[int, int] | None:
    """The image size that a config.json of timm or transformers names."""
    pretrained = config.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, Mapping) else None
    if isinstance(size, list | tuple) and len(size) == 3:
        return int(size[1]), int(size[2])
    side = config.get("image_size")
    return side if isinstance(side, int) else None


# --------------------------------------------------------------------------------------------------------------------
# Writing


def export_state(model: Swin, to: Library) -> dict[str, Tensor]:
    """The model's tensors under another library's names."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        theirs = WRITES[to](name)
        state |= dict(zip(theirs, value.chunk(len(theirs)), strict=True))
    return state


def timm_keys(config: SwinConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """The keys of config.json by which timm's `create_model("local-dir:FOLDER")` opens the weights.

    Raises Inexpressible for another epsilon than timm's.
    """
    if config.norm_eps != SwinConfig.norm_eps:
        raise Inexpressible(f"timm's SwinTransformer has no norm_eps {config.norm_eps:g}")
    return {
        "architecture": "swin_tiny_patch4_window7_224",
        "model_args": {
            "img_size": config.img_size,
            "patch_size": config.patch_size,
            "in_chans": config.in_channels,
            "embed_dim": config.embed_dim,
            "depths": config.depths,
            "num_heads": config.num_heads,
            "window_size": config.window_size,
            "mlp_ratio": config.mlp_ratio,
        },
        "pretrained_cfg": {
            "input_size": [config.in_channels, *images.img_size],
            "fixed_input_size": True,
            "mean": images.mean,
            "std": images.std,
            "crop_pct": images.crop_pct,
            "crop_mode": images.crop_mode,
            "interpolation": images.interpolation,
            "num_classes": config.num_classes,
            **({"first_conv": "patch_embed.proj"} if config.in_channels in (1, 3) else {}),
            "classifier": "head.fc",
            **({"license": licence} if licence else {}),
        },
    }


def plan_timm(model: Swin, images: Preprocessing) -> Plan:
    """A folder for `create_model("local-dir:…")`, which is a run folder too."""
    timm_keys(model.config, images)
    return Plan("timm", 'timm.create_model("local-dir:PATH", pretrained=True)', model=model)


def plan_transformers(model: Swin, images: Preprocessing) -> Plan:
    """A folder for from_pretrained. Raises Inexpressible for a model without a head, whose class has other names."""
    cfg = model.config
    if not cfg.num_classes:
        raise Inexpressible("transformers' SwinForImageClassification has no num_classes 0")
    config = {
        "architectures": ["SwinForImageClassification"],
        "model_type": "swin",
        "image_size": sides(cfg.img_size),
        "patch_size": cfg.patch_size,
        "num_channels": cfg.in_channels,
        "embed_dim": cfg.embed_dim,
        "depths": cfg.depths,
        "num_heads": cfg.num_heads,
        "window_size": cfg.window_size,
        "mlp_ratio": cfg.mlp_ratio,
        "hidden_act": "gelu",
        "layer_norm_eps": cfg.norm_eps,
        **labels_of(model.classes, num_classes=cfg.num_classes, multi_label=model.multi_label),
        "torch_dtype": "float32",
    }
    return Plan(
        "hf",
        'transformers.SwinForImageClassification.from_pretrained("PATH")',
        tensors=export_state(model, "transformers"),
        beside={"config.json": config, "preprocessor_config.json": image_processor(images, "ViT")},
    )


def plan_torchvision(model: Swin, images: Preprocessing) -> Plan:
    """A state dict, and the arguments of the class that loads it. Raises Inexpressible for other channels than three."""
    cfg = model.config
    if cfg.in_channels != 3 or not cfg.num_classes:
        raise Inexpressible(f"torchvision's SwinTransformer has no in_channels {cfg.in_channels} or num_classes 0")
    args = {
        "patch_size": [cfg.patch_size] * 2,
        "embed_dim": cfg.embed_dim,
        "depths": list(cfg.depths),
        "num_heads": list(cfg.num_heads),
        "window_size": [cfg.window_size] * 2,
        "mlp_ratio": cfg.mlp_ratio,
        "num_classes": cfg.num_classes,
    }
    state = export_state(model, "torchvision")
    indexes = {  # buffers that a strict load asks for
        name.replace("bias_table", "index"): relative_index(cfg.window_size).flatten()
        for name in state
        if name.endswith("relative_position_bias_table")
    }
    return Plan(
        "torchvision",
        f"torchvision.models.SwinTransformer({', '.join(f'{name}={value}' for name, value in args.items())})",
        tensors=state | indexes,
        beside={
            ".json": {
                "arguments": args,
                "preprocessing": dataclasses.asdict(images),
                "label_names": list(model.classes),
                "multi_label": model.multi_label,
            }
        },
    )


PLANS = {"timm": plan_timm, "hf": plan_transformers, "torchvision": plan_torchvision}
