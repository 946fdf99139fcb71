"""CvT checkpoints of transformers and of the paper's code, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from command_line import Typed
from vitrail.models import Cvt
from vitrail.models.receipt import Receipt
from vitrail.settings import Preprocessing
from vitrail.weights import load, save_model
from vitrail.weights.family import export_state
from vitrail.weights.libraries.transformers.cvt import cvt_fields, cvt_plan
from vitrail.weights.targets import Inexpressible

SHAPE: dict[str, Any] = {"embed_dim": [8, 12, 16], "depth": [1, 2, 3], "num_heads": [1, 3, 2], "num_labels": 5}


def random(model: nn.Module) -> Any:
    """With weights and running statistics that tell everything apart."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.5)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model.eval()


def of_transformers(**fields: Any) -> Any:
    return random(transformers.CvtForImageClassification(transformers.CvtConfig(**{**SHAPE, **fields})))


def of_the_paper() -> dict[str, Tensor]:
    shape: dict[str, Any] = {"embed_dims": (8, 12, 16), "depths": (1, 2, 3), "num_heads": (1, 3, 2), "num_classes": 5}
    return dict(random(Cvt(**shape)).state_dict())


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def logits_of(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def test_what_transformers_wrote_computes_the_same(tmp_path: Path) -> None:
    theirs = of_transformers(stride_kv=[1, 1, 1])
    theirs.save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 224}).save_pretrained(tmp_path)
    for source in (theirs, tmp_path):
        ours = load(source)
        torch.testing.assert_close(logits_of(ours, images()), logits_of(theirs, images()), atol=1e-5, rtol=1e-5)
        receipt = ours.receipt
        assert isinstance(receipt, Receipt)
        assert receipt.origin == "transformers, Cvt"
        assert {entry.status for entry in receipt.entries} == {"exact"}
        assert receipt.assumed[0].startswith("GELU, as transformers computes it; the paper's code")
    assert (ours.config.num_heads, ours.config.kv_stride, ours.config.mlp) == ((1, 3, 2), 1, "gelu")
    assert ours.preprocessing is not None
    assert (ours.preprocessing.crop_pct, ours.preprocessing.crop_mode) == (224 / 256, "center")
    trained = load(theirs, mlp="quick_gelu")
    assert trained.config.mlp == "quick_gelu"
    assert isinstance(trained.receipt, Receipt)
    assert trained.receipt.assumed == ()


def test_the_encoder_alone_has_no_head() -> None:
    theirs = of_transformers()
    ours: Any = load(theirs.cvt, strict=False)
    assert ours.config.num_classes == 0
    with torch.no_grad():
        torch.testing.assert_close(ours.features(images()).pyramid[-1], theirs.cvt(images()).last_hidden_state)


def test_the_paper_s_files(tmp_path: Path) -> None:
    state = of_the_paper()
    torch.save(state, tmp_path / "CvT-13-224x224-IN-1k.pth")
    with pytest.raises(ValueError, match=r"num_heads \(no tensor shows them\): give num_heads=\(1, 1, 1\)$"):
        load(tmp_path / "CvT-13-224x224-IN-1k.pth")
    ours = load(tmp_path / "CvT-13-224x224-IN-1k.pth", num_heads=(1, 3, 2))
    assert isinstance(ours.receipt, Receipt)
    assert ours.receipt.origin == "Microsoft, Cvt"
    assert ours.config.mlp == "quick_gelu"
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    assert ours.preprocessing is not None
    assert (ours.preprocessing.crop_pct, ours.preprocessing.crop_mode) == (0.875, "center")


def test_other_sizes_channels_and_classes() -> None:
    theirs = of_transformers()
    ours = load(theirs, in_channels=6, num_classes=9, img_size=96)
    assert isinstance(ours.receipt, Receipt)
    states = {entry.name: (entry.status, entry.note) for entry in ours.receipt.entries}
    assert states["stage0.patch_embed.proj.weight"] == ("adapted", "3 -> 6 channels")
    assert states["head.weight"][0] == "new"
    assert "resized" not in {status for status, _ in states.values()}
    assert logits_of(ours, torch.randn(2, 6, 96, 96)).shape == (2, 9)
    twice = logits_of(load(theirs, in_channels=6), images().repeat(1, 2, 1, 1))
    torch.testing.assert_close(twice, logits_of(theirs, images()), atol=1e-4, rtol=1e-4)


def test_written_for_transformers(vitrail: Typed, tmp_path: Path) -> None:
    model = load(of_transformers(), img_size=64)
    model.preprocessing = Preprocessing(img_size=(64, 64), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.classes = tuple("abcde")
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="toys")
    assert vitrail("convert", tmp_path / "run", tmp_path / "hf", "--to", "hf").code == 0
    theirs: Any = transformers.CvtForImageClassification.from_pretrained(tmp_path / "hf")
    theirs.eval()
    torch.testing.assert_close(logits_of(theirs, images()), logits_of(model, images()), atol=1e-5, rtol=1e-5)
    assert theirs.config.id2label == dict(enumerate("abcde"))
    for folder in ("run", "hf"):
        again = load(tmp_path / folder)
        assert (again.config, again.classes, again.preprocessing) == (model.config, model.classes, model.preprocessing)
        assert torch.equal(logits_of(again, images()), logits_of(model, images()))
    said = vitrail("convert", tmp_path / "run", tmp_path / "timm", "--to", "timm")
    assert said.code == 2
    assert '"timm" has no Cvt' in said.err


def test_the_paper_s_activation_is_none_of_transformers(vitrail: Typed, tmp_path: Path) -> None:
    model = load(of_the_paper(), num_heads=(1, 3, 2))
    save_model(model, tmp_path, data="toys")
    said = vitrail("convert", tmp_path, tmp_path / "hf", "--to", "hf")
    assert said.code == 2
    assert "transformers' CvtForImageClassification computes mlp gelu, and this model has quick_gelu" in said.err
    short = Cvt(embed_dims=(8, 12, 16), depths=(1, 2, 2), num_heads=(1, 3, 2), mlp="gelu")
    short.preprocessing = model.preprocessing
    with pytest.raises(Inexpressible, match="needs 3 blocks in stage 2, and this model has 2"):
        cvt_plan(short)


def test_what_is_written_is_read_again() -> None:
    ours = load(of_transformers())
    for library in ("transformers", "Microsoft"):
        again = load(export_state(ours, library), num_heads=(1, 3, 2))
        assert again.state_dict().keys() == ours.state_dict().keys()
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in again.state_dict().items())


def test_configs_of_transformers() -> None:
    written = json.loads(transformers.CvtConfig(depth=[1, 4, 16]).to_json_string())  # leaves out what is CvT-13's
    assert cvt_fields(written) == {"mlp": "gelu", "num_heads": (1, 3, 6), "kv_stride": 2}
    with pytest.raises(ValueError, match=r"^cls_token \[True, .*\] is not the paper's \[False, False, True\]; open it with"):
        cvt_fields({**written, "cls_token": [True, False, True]})
    with pytest.raises(ValueError, match="stride_kv"):
        cvt_fields({**written, "stride_kv": [2, 2, 1]})


def test_files_that_are_none() -> None:
    state = of_the_paper()
    with pytest.raises(ValueError, match=r"has no stage2\.blocks\.1\.mlp\.fc2\.bias, so it is not all of a CvT"):
        load({name: value for name, value in state.items() if name != "stage2.blocks.1.mlp.fc2.bias"}, num_heads=(1, 3, 2))
