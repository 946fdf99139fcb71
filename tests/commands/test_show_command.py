"""`vitrail show`: what a model costs."""

from __future__ import annotations

import re
from pathlib import Path

from command_line import Typed
from vitrail.models import create_model


def test_show_prints_what_a_model_costs(vitrail: Typed) -> None:
    said = vitrail("show", "B/16", "--img-size", "384")
    assert said.code == 0
    for line in (
        "images      384 x 384 px, 3 channels; 1,000 classes",
        "shape       width 768, 12 blocks, 12 heads, MLP 3,072",
        "tokens      577 = 1 + 576 patches of 16 x 16 px",
        "parameters  86,859,496",
        "weights     347 MB in fp32",
        "FLOPs       110.97 G in the forward pass of 1 image",
    ):
        assert f"  {line}\n" in said.out
    assert vitrail("show", "vit_base_patch16_384").out == said.out.replace("B/16\n", "vit_base_patch16_384\n")
    changed = vitrail(
        "show", "B/16", "--img-size=32x48", "--in-channels=1", "--num-classes=1", "--model.depth=1", "--batch-size=8"
    )
    assert "images      32 x 48 px, 1 channel; 1 class\n" in changed.out
    assert "width 768, 1 block, 12 heads" in changed.out
    assert "of activations for 8 images in fp32" in changed.out
    each = r"\S+ [kM]B in fp32, \S+ [kM]B in bf16"
    assert re.search(rf"\n  in all +{each}, with weights, gradients and AdamW\n", changed.out)
    assert re.search(rf"\n  recomputed +{each} in all, with train.checkpointing\n", changed.out)


def test_show_of_a_run_is_its_model(vitrail: Typed, run: Path) -> None:
    said = vitrail("show", run)
    assert "28 x 28 px, 1 channel; 10 classes" in said.out
    assert "width 16, 1 block, 2 heads" in said.out


def test_show_groups_has_every_parameter_once(vitrail: Typed) -> None:
    words = "show S/16 --model.depth 2 --groups --optim.name muon --optim.layer_decay 0.5 --optim.weight_decay 0.1"
    lines = vitrail(*words.split()).out.splitlines()
    rows = {line.split()[0]: line.split()[-3:] for line in lines if "adamw" in line or "muon" in line}
    assert list(rows) == list(create_model("S/16", depth=2).state_dict())
    assert rows["blocks.1.attn.qkv.weight"] == ["muon", "0.5", "0.1"]
    assert rows["blocks.0.norm1.weight"] == ["adamw", "0.25", "0"]
    assert rows["cls_token"] == ["adamw", "0.125", "0"]
    assert rows["head.weight"] == ["adamw", "1", "0.1"]
