from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from torchvision.models import SwinTransformer as TorchvisionSwin

from vitrail.models.receipt import Receipt
from vitrail.models.swin import Swin
from vitrail.models.windows import resize_bias_table
from vitrail.settings.swin import SwinConfig
from vitrail.weights import convert, load
from vitrail.weights.family import LAYOUTS, find_layout
from vitrail.weights.libraries.microsoft import swin_names
from vitrail.weights.libraries.transformers.swin import old_swin_names
from vitrail.weights.library import FamilyLayout
from vitrail.weights.targets import rename_family

SHAPE: dict[str, Any] = {"embed_dim": 16, "depths": (2, 1, 2), "num_heads": (2, 4, 4)}


def random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def of_timm(**fields: Any) -> Any:
    return random(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **{**SHAPE, **fields}))


def of_torchvision() -> Any:
    return random(TorchvisionSwin([4, 4], 16, [2, 1, 2], [2, 4, 4], [7, 7], num_classes=5))


def of_transformers() -> Any:
    config = transformers.SwinConfig(embed_dim=16, depths=[2, 1, 2], num_heads=[2, 4, 4], num_labels=5)
    return random(transformers.SwinForImageClassification(config))


def images(side: int = 224) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def logits_of(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize(
    ("library", "make"), [("timm", of_timm), ("torchvision", of_torchvision), ("transformers", of_transformers)]
)
def test_what_each_library_wrote_computes_the_same(library: str, make: Any, tmp_path: Path) -> None:
    theirs = make()
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / "swin.safetensors")
    for source in (theirs, theirs.state_dict(), tmp_path / "swin.safetensors", str(tmp_path / "swin.safetensors")):
        ours = load(source)
        assert not ours.training
        torch.testing.assert_close(logits_of(ours, images()), logits_of(theirs, images()), atol=1e-5, rtol=1e-5)
        receipt = ours.receipt
        assert isinstance(receipt, Receipt)
        assert receipt.origin == f"{library}, Swin"
        assert {entry.status for entry in receipt.entries} == {"exact"}
        assert receipt.total("exact") == sum(parameter.numel() for parameter in ours.parameters())
        assert receipt.backbone_share == 1
        assert ours.preprocessing is not None
    assert (ours.config.depths, ours.config.num_heads, ours.config.window_size) == ((2, 1, 2), (2, 4, 4), 7)


def test_a_folder_of_timm(tmp_path: Path) -> None:
    theirs = of_timm()
    save_for_hf(theirs, tmp_path, model_args={"depths": [2, 1, 2]})
    ours = load(tmp_path)
    torch.testing.assert_close(logits_of(ours, images()), logits_of(theirs, images()), atol=1e-5, rtol=1e-5)
    assert ours.preprocessing is not None
    assert ours.preprocessing.crop_pct == 0.9
    assert ours.preprocessing.img_size == (224, 224)


def test_the_paper_s_files_and_those_of_transformers_4() -> None:
    theirs = of_timm()
    old = {swin_names(name)[0]: value for name, value in theirs.state_dict().items()}
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    torch.testing.assert_close(logits_of(load(old), images()), logits_of(theirs, images()), atol=1e-5, rtol=1e-5)
    ours, four = load(theirs), {}
    for name, value in ours.state_dict().items():
        parts = old_swin_names(name)
        four |= dict(zip(parts, value.chunk(len(parts)), strict=True))
    assert "swin.encoder.layers.0.blocks.0.attention.self.query.weight" in four
    assert "swin.encoder.layers.0.blocks.0.intermediate.dense.weight" in four
    torch.testing.assert_close(logits_of(load(four), images()), logits_of(theirs, images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.family is SwinConfig])
def test_what_is_written_is_read_again(layout: FamilyLayout) -> None:
    ours = load(of_timm())
    again = load(rename_family(ours, layout))
    assert again.state_dict().keys() == ours.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])


def test_another_window_resizes_the_bias() -> None:
    theirs = of_timm()
    ours = load(theirs, window_size=8, img_size=256)
    table = theirs.layers[0].blocks[0].attn.relative_position_bias_table
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(ours.state_dict()[name], resize_bias_table(table, window=8))
    assert isinstance(ours.receipt, Receipt)
    resized = {entry.name: entry.note for entry in ours.receipt.entries if entry.status == "resized"}
    assert set(resized.values()) == {"window 7 -> 8"}
    assert len(resized) == 5
    assert logits_of(ours, images(256)).isfinite().all()


@pytest.mark.parametrize("windows", [(7, 14, 7), (4, 7, 2)])
def test_windows_of_each_stage(windows: tuple[int, ...], tmp_path: Path) -> None:
    """timm's S3 models have them, and its windows are as small as a map at the size that a model is built for."""
    theirs = of_timm(window_size=windows)
    ours = load(theirs.state_dict())
    sizes = tuple(layer.blocks[0].attn.window_size[0] for layer in theirs.layers)
    assert (ours.config.window_sizes, ours.config.window_size) == (sizes, max(sizes))
    torch.testing.assert_close(logits_of(ours, images()), logits_of(theirs, images()), atol=1e-5, rtol=1e-5)
    convert(ours, "timm", tmp_path / "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    torch.testing.assert_close(logits_of(again, images()), logits_of(theirs, images()), atol=1e-5, rtol=1e-5)
    for to in ("torchvision", "hf"):
        with pytest.raises(ValueError, match="has no window_sizes"):
            convert(ours, to, tmp_path / to)


def test_other_channels_and_classes() -> None:
    theirs = of_timm()
    ours = load(theirs, in_channels=6, num_classes=9)
    assert isinstance(ours.receipt, Receipt)
    states = {entry.name: (entry.status, entry.note) for entry in ours.receipt.entries}
    assert states["patch_embed.proj.weight"] == ("adapted", "3 -> 6 channels")
    assert states["head.fc.weight"][0] == "new"
    twice = images().repeat(1, 2, 1, 1)
    with torch.no_grad():
        seen, expected = ours.embedding(twice), load(theirs).embedding(images())
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)
    assert logits_of(ours, twice).shape == (2, 9)
    assert logits_of(load(theirs, num_classes=0), images()).shape == (2, 64)


@pytest.mark.parametrize("live", [True, False])
def test_a_loaded_model_has_memory_of_its_own(live: bool) -> None:
    """Or training it would train the model that it was loaded from."""
    theirs = of_timm()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    ours = load(theirs if live else theirs.state_dict())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_files_that_are_none() -> None:
    state = of_timm().state_dict()
    gap = {name: value for name, value in state.items() if name != "layers.1.blocks.0.mlp.fc2.bias"}
    with pytest.raises(ValueError, match=r"has no layers\.1\.blocks\.0\.mlp\.fc2\.bias, so it is not all of a Swin"):
        load(gap)
    with pytest.raises(ValueError, match=r"has no patch_embed\.proj\.weight, so it is not all of a Swin"):
        load({name: value for name, value in state.items() if not name.startswith("patch_embed")})
    with pytest.raises(ValueError, match=r"and the model wants .*; leave the field out that asks for it"):
        load(state, mlp_ratio=2.0)
    with pytest.raises(ValueError, match='"windows" is not a field of a model'):
        load(state, windows=3)
    assert find_layout({}) is None


def test_what_has_no_place_is_in_the_receipt() -> None:
    ours = load({**of_timm().state_dict(), "extra.weight": torch.zeros(3)})
    assert isinstance(ours.receipt, Receipt)
    others = [(entry.name, entry.status) for entry in ours.receipt.entries if entry.status != "exact"]
    assert others == [("extra.weight", "dropped")]
    assert isinstance(ours, Swin)
