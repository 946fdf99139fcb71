"""A name, a run folder and a checkpoint give the settings of their model, with changes above them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitrail.models import create_model
from vitrail.models.receipt import Receipt
from vitrail.settings.layers import build, to_yaml
from vitrail.weights.shape import resolve_model


@pytest.mark.parametrize("name", ["Ti/16", "vit_tiny_patch16_224", "swin_t", "cait_s24_384", "cvt_w24", "timm:test_resnet"])
def test_a_name_gives_its_shape_and_no_receipt(name: str) -> None:
    settings, receipt = resolve_model(name, {"model": {"num_classes": 3}}, {"optim": {"lr": 0.5}})
    assert settings == build([{"model": {"name": name, "num_classes": 3}, "optim": {"lr": 0.5}}])
    assert receipt is None


def test_a_run_gives_its_settings(tmp_path: Path) -> None:
    kept = build([{"model": {"name": "Ti/8", "depth": 2}, "optim": {"lr": 0.5}}])
    (tmp_path / "config.yaml").write_text(to_yaml(kept))
    assert resolve_model(str(tmp_path)) == (kept, None)
    assert resolve_model(str(tmp_path), {"model": {"depth": 3}})[0].model.depth == 3


def test_a_checkpoint_gives_its_shape_and_a_receipt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(create_model("Ti/16", depth=2, num_classes=5).state_dict(), path)
    settings, receipt = resolve_model(str(path), {"model": {"num_classes": 7}}, {"optim": {"lr": 0.5}})
    assert (settings.model.name, settings.model.depth, settings.model.num_classes) == ("custom", 2, 7)
    assert settings.optim.lr == 0.5
    assert isinstance(receipt, Receipt)
    with pytest.raises(ValueError, match=r'model\.num_classes "x"'):
        resolve_model(str(path), {"model": {"num_classes": "x"}})
