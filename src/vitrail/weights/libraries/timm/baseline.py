"""Models of timm that are not ours, which run folders hold under timm's names."""

from __future__ import annotations

from typing import Any

from vitrail.models import Baseline
from vitrail.settings import Preprocessing
from vitrail.weights.libraries.timm.card import first_conv, pretrained_cfg


def baseline_config(model: Baseline, images: Preprocessing) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens one of its own models; none for another library's."""
    cfg = model.config
    if cfg.library != "timm":
        return {}
    published = model.net.pretrained_cfg
    assert isinstance(published, dict)
    kept = {"fixed_input_size", "classifier", *(["first_conv"] if first_conv(cfg) else [])}
    args: dict[str, Any] = {"in_chans": cfg.in_channels}
    if published.get("fixed_input_size"):
        args["img_size"] = cfg.img_size
    return {
        "architecture": cfg.theirs.partition(".")[0],
        "model_args": args,
        "pretrained_cfg": pretrained_cfg(cfg, images, None, **{key: value for key, value in published.items() if key in kept}),
    }
