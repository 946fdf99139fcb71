"""CLIP's visual towers, as OpenAI's state dicts and open_clip name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.weights.eval_transform import CLIP, DefaultTransform, EvalTransform, filter_of, numbers, with_notes
from vitrail.weights.libraries.timm.vit import config_fields as timm_fields
from vitrail.weights.library import Config, Layout, Library, from_list
from vitrail.weights.names import TOKEN, TOKENS, TRANSPOSED, key_table

BLOCK = "transformer.resblocks.#"
TOWER = Layout(
    name="CLIP",
    anchor="conv1.weight",
    table=key_table(
        [
            ("cls_token", "class_embedding", TOKEN),
            ("pos_embed", "positional_embedding", TOKENS),
            ("patch_embed.proj.*", "conv1.*"),
            ("norm_pre.*", "ln_pre.*"),
            ("blocks.#.norm1.*", f"{BLOCK}.ln_1.*"),
            ("blocks.#.attn.qkv.weight", f"{BLOCK}.attn.in_proj_weight"),
            ("blocks.#.attn.qkv.bias", f"{BLOCK}.attn.in_proj_bias"),
            ("blocks.#.attn.proj.*", f"{BLOCK}.attn.out_proj.*"),
            ("blocks.#.ls1.gamma", f"{BLOCK}.ls_1.gamma"),
            ("blocks.#.norm2.*", f"{BLOCK}.ln_2.*"),
            ("blocks.#.mlp.fc1.*", f"{BLOCK}.mlp.c_fc.*"),
            ("blocks.#.mlp.fc2.*", f"{BLOCK}.mlp.c_proj.*"),
            ("blocks.#.ls2.gamma", f"{BLOCK}.ls_2.gamma"),
            ("norm.*", "ln_post.*"),
            ("head.weight", "proj", TRANSPOSED),
        ]
    ),
    assumes={"norm_eps": 1e-5},
    class_row=True,
)
CLIPA_TOWER = Layout(
    name="CLIPA",  # open_clip's towers without ln_pre: the norm follows the mean of the tokens
    anchor="conv1.weight",
    table=tuple(
        row._replace(ours=row.ours.replace("norm.", "fc_norm.")) if row.ours.startswith("norm.") else row
        for row in TOWER.table
        if not row.ours.startswith("norm_pre")
    ),
    assumes=TOWER.assumes,
)


def config_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ViTConfig in the model_cfg of open_clip_config.json."""
    if "model_cfg" not in config:
        return {}
    model = config["model_cfg"]
    vision = model.get("vision_cfg") or {}
    tanh = (vision.get("act_kwargs") or {}).get("approximate") == "tanh"
    fields: dict[str, Any] = {"mlp": "quick_gelu" if model.get("quick_gelu") else "gelu_tanh" if tanh else "gelu"}
    if "eps" in (vision.get("norm_kwargs") or {}):
        fields["norm_eps"] = vision["norm_kwargs"]["eps"]
    if "width" in vision:
        fields["num_heads"] = vision["width"] // vision.get("head_width", 64)
        fields["pool"] = "avg" if vision.get("pool_type") == "avg" else "cls"
    if "image_size" in vision:
        fields["img_size"] = from_list(vision["image_size"])
    if "timm_model_name" in vision:
        fields = {**fields, **timm_fields({"architecture": vision["timm_model_name"]})}
        pool = vision.get("timm_pool")
        fields |= {"pool": {"token": "cls"}.get(pool, pool)} if pool else {}
    return fields


def config_transform(config: Config) -> EvalTransform | None:
    """Return the transform of a preprocess_cfg; defaults as open_clip's PreprocessCfg."""
    cfg = config.get("preprocess_cfg")
    if not isinstance(cfg, Mapping):
        return None
    where, notes = "open_clip's preprocess_cfg", list[str]()
    mode = cfg.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):  # "longest" pads what is not square
        notes.append(f'its resize mode "{mode}" is read as "shortest"')
    return EvalTransform(
        numbers(cfg.get("mean") or CLIP[0], f"{where}: mean"),
        numbers(cfg.get("std") or CLIP[1], f"{where}: std", above_zero=True),
        1.0,
        "squash" if mode == "squash" else "center",
        filter_of(cfg.get("interpolation") or "bicubic", notes),
        with_notes(where, notes),
    )


OPEN_CLIP = Library(
    layouts=(CLIPA_TOWER, TOWER),
    fields=config_fields,
    config_transform=config_transform,
    default_transforms=(
        # openai/CLIP: clip/clip.py; open_clip: transform.py
        DefaultTransform("clip", "CLIP", CLIP, 1.0, "center", "bicubic"),
    ),
)
