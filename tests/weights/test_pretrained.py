"""The table of checkpoints says what timm and the checkpoints' names say."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitrail.models import create_model
from vitrail.settings import SIZES
from vitrail.settings.families import family_of, parse_name
from vitrail.weights import load, pretrained
from vitrail.weights.pretrained import PretrainedRow, rows, terms

ROWS = rows()
OF_TIMM = [row for row in ROWS if row.id.startswith("timm/")]
PLAIN_OF_TIMM = [row for row in OF_TIMM if row.shape is not None]
FURTHER_OF_TIMM = [row for row in OF_TIMM if row.shape is None]
OTHERS = [row for row in ROWS if not row.id.startswith("timm/") and row.shape is not None]
LETTERS = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "vith": "H"}


def names(table: list[PretrainedRow]) -> list[str]:
    return [row.id.partition("/")[2] for row in table]


def test_no_checkpoint_is_there_twice() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=names(list(ROWS)))
def test_a_row_is_whole(row: PretrainedRow) -> None:
    assert (row.top1 is None) == (row.source is None)
    assert row.top1 is None or 60 < row.top1 < 92
    assert row.source is None or row.source.how in ("own head", "linear", "zero-shot")
    assert row.source is None or (row.source.how == "own head") == (row.num_classes == 1000)
    assert (row.num_classes == 1000) == (row.data[-1] == "ImageNet-1k" and row.num_classes > 0)
    assert row.img_size % row.patch_size == 0
    assert row.shape is None or row.size == f"{row.size.partition('/')[0]}/{row.patch_size}"


@pytest.mark.parametrize("row", FURTHER_OF_TIMM, ids=names(FURTHER_OF_TIMM))
def test_a_row_of_another_family_is_timm_s_model(row: PretrainedRow) -> None:
    """timm's config of the checkpoint stands for the config.json of its repository, which timm wrote from it."""
    timm = pytest.importorskip("timm")
    name = row.id.removeprefix("timm/")
    cfg = timm.models.get_pretrained_cfg(name)
    assert (cfg.hf_hub_id, cfg.license) == (row.id, row.licence)
    assert (cfg.input_size, cfg.num_classes) == ((3, row.img_size, row.img_size), row.num_classes)
    architecture = name.partition(".")[0]
    with torch.device("meta"):
        theirs = timm.create_model(name)
        ours = create_model(architecture, num_classes=row.num_classes, img_size=row.img_size)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    shape, named = (family_of(one).config(**parse_name(one)) for one in (architecture, row.size))
    assert type(shape) is type(named)
    assert [getattr(one, "embed_dim", None) for one in (shape, named)] == [ours.config.embed_dim] * 2
    assert row.patch_size == ours.config.patch_size


DINOV3: dict[str, Any] = {  # what the config.json of these repositories says of the shape; the rest of it are defaults
    "facebook/dinov3-vits16-pretrain-lvd1689m": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
    "facebook/dinov3-vitb16-pretrain-lvd1689m": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}


@pytest.mark.parametrize("repo", DINOV3)
def test_the_config_of_a_repository_gives_its_row(repo: str) -> None:
    transformers = pytest.importorskip("transformers")
    row = next(row for row in ROWS if row.id == repo)
    config = transformers.DINOv3ViTConfig(
        num_hidden_layers=2, num_register_tokens=4, image_size=224, patch_size=16, key_bias=False, **DINOV3[repo]
    )
    model = load(transformers.DINOv3ViTModel(config))
    assert dataclasses.replace(model.config, depth=12, num_classes=0, rope_rescale=None) == family_of(row.size).config(
        **{**parse_name(row.size), "num_classes": 0, "img_size": model.config.img_size}
    )
    assert model.config.img_size in (224, (224, 224))


def test_terms_are_told_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terms("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k") is None
    assert terms("somebody/else") is None

    def refuse(repo: str, revision: str | None = None) -> Path:
        raise ValueError("no network")

    monkeypatch.setattr("vitrail.weights.hub.fetch", refuse)
    with (
        pytest.warns(UserWarning, match="is under dinov3-license, which has terms of its own"),
        pytest.raises(ValueError, match="no network"),
    ):
        load("facebook/dinov3-vits16-pretrain-lvd1689m")


@pytest.mark.parametrize("row", PLAIN_OF_TIMM, ids=names(PLAIN_OF_TIMM))
def test_timm_says_the_same(row: PretrainedRow) -> None:
    timm = pytest.importorskip("timm")
    name = row.id.removeprefix("timm/")
    cfg = timm.models.get_pretrained_cfg(name)
    assert cfg is not None, "timm knows no such checkpoint"
    assert (cfg.hf_hub_id, cfg.license) == (row.id, row.licence)
    assert (cfg.input_size, cfg.num_classes) == ((3, row.img_size, row.img_size), row.num_classes)
    with torch.device("meta"):
        model = timm.create_model(name)
    block = model.blocks[0]
    assert row.shape is not None
    assert (model.embed_dim, len(model.blocks), block.attn.num_heads) == row.shape[:3]
    assert block.mlp.fc2.in_features == round(row.shape.embed_dim * row.shape.mlp_ratio)
    assert model.patch_embed.patch_size == (row.patch_size, row.patch_size)


@pytest.mark.parametrize("row", OTHERS, ids=names(OTHERS))
def test_the_name_says_the_same(row: PretrainedRow) -> None:
    """Sizes by our table, and patch and pixels where the id has them."""
    words = re.search("|".join(LETTERS), row.id)
    assert words is not None
    letter = LETTERS[words[0]]
    assert row.size.startswith(f"{letter}/")
    assert row.shape == SIZES[letter]
    if patch := re.search(r"(?:patch|vith)(\d+)", row.id):
        assert row.patch_size == int(patch[1])
    if pixels := re.search(r"patch\d+-(\d+)", row.id):
        assert row.img_size == int(pixels[1])


def test_needs_no_torch() -> None:
    code = f"""
import importlib.util, sys
sys.modules["torch"] = None
spec = importlib.util.spec_from_file_location("pretrained", {str(pretrained.__file__)!r})
module = sys.modules["pretrained"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.rows()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
