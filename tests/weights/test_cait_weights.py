"""CaiT checkpoints of timm and of the paper's code, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail import cli
from vitrail.models.receipt import Receipt
from vitrail.settings import Preprocessing
from vitrail.settings.cait import CaitConfig
from vitrail.weights import load, save_model

SHAPE: dict[str, Any] = {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 4, "init_values": 0.1}


def of_timm(**fields: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model("cait_xxs24_224", num_classes=5, **{**SHAPE, **fields})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def images(height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def test_what_timm_and_the_paper_s_code_wrote_computes_the_same(tmp_path: Path) -> None:
    theirs = of_timm(depth_token_only=3, qkv_bias=False, mlp_ratio=3.0, mlp_ratio_token_only=3.0)
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / "cait.safetensors")
    torch.save({"model": {f"module.{name}": value for name, value in theirs.state_dict().items()}}, tmp_path / "S24_224.pth")
    for source in (theirs, theirs.state_dict(), tmp_path / "cait.safetensors", tmp_path / "S24_224.pth"):
        ours = load(source)
        assert not ours.training
        torch.testing.assert_close(logits_of(ours, images()), logits_of(theirs, images()), atol=1e-5, rtol=1e-5)
        receipt = ours.receipt
        assert isinstance(receipt, Receipt)
        assert receipt.origin == "timm, Cait"
        assert {entry.status for entry in receipt.entries} == {"exact"}
        assert receipt.backbone_share == 1
    assert ours.config == CaitConfig(
        **SHAPE | {"init_values": None}, num_classes=5, class_depth=3, qkv_bias=False, mlp_ratio=3.0
    )
    assert ours.preprocessing is not None
    assert (ours.preprocessing.crop_pct, ours.preprocessing.interpolation) == (1.0, "bicubic")


@pytest.mark.parametrize("size", [96, (48, 80)])
def test_another_size_resizes_the_positions(size: int | tuple[int, int]) -> None:
    theirs = of_timm()
    ours, stored = load(theirs, img_size=size), load(theirs)
    assert isinstance(ours.receipt, Receipt)
    (resized,) = (entry for entry in ours.receipt.entries if entry.status == "resized")
    assert resized.name == "pos_embed"
    assert resized.note.startswith("grid 4x4 -> ")
    x = images(*((size, size) if isinstance(size, int) else size))
    torch.testing.assert_close(logits_of(ours, x), logits_of(stored, x), atol=1e-5, rtol=1e-5)


def test_other_patches_channels_and_classes() -> None:
    theirs = of_timm()
    ours = load(theirs, in_channels=6, num_classes=9, patch_size=8)
    assert isinstance(ours.receipt, Receipt)
    states = {entry.name: (entry.status, entry.note) for entry in ours.receipt.entries}
    assert states["patch_embed.proj.weight"] == ("resized", "patch 16x16 -> 8x8")
    assert states["pos_embed"] == ("resized", "grid 4x4 -> 8x8")
    assert states["head.weight"][0] == "new"
    assert logits_of(ours, torch.randn(2, 6, 64, 64)).shape == (2, 9)
    twice = logits_of(load(theirs, in_channels=6), images().repeat(1, 2, 1, 1))
    torch.testing.assert_close(twice, logits_of(theirs, images()), atol=1e-4, rtol=1e-4)
    assert logits_of(load(theirs, num_classes=0), images()).shape == (2, 16)


def test_written_for_timm(tmp_path: Path) -> None:
    model = load(of_timm(depth_token_only=3, img_size=(48, 80)), img_size=(48, 80))
    model.preprocessing = Preprocessing(img_size=(48, 80), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.classes = tuple("abcde")
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="toys")
    assert cli.main(["convert", str(tmp_path / "run"), str(tmp_path / "timm"), "--to", "timm"]) == 0
    for folder in ("run", "timm"):
        theirs = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True).eval()
        torch.testing.assert_close(logits_of(theirs, images(48, 80)), logits_of(model, images(48, 80)), atol=1e-5, rtol=1e-5)
        again = load(tmp_path / folder)
        assert (again.config, again.classes, again.preprocessing) == (model.config, model.classes, model.preprocessing)
        assert torch.equal(logits_of(again, images(48, 80)), logits_of(model, images(48, 80)))


def test_files_that_are_none() -> None:
    state = of_timm().state_dict()
    with pytest.raises(ValueError, match=r"has no blocks\.1\.gamma_2, so it is not all of a CaiT; give a whole one"):
        load({name: value for name, value in state.items() if name != "blocks.1.gamma_2"})
    with pytest.raises(ValueError, match=r"15 positions make no square, and no config\.json states the image size"):
        load(of_timm(img_size=(48, 80)).state_dict())
