"""The table of checkpoints says what timm and the checkpoints' names say."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from vitrail.settings import SIZES
from vitrail.weights import pretrained
from vitrail.weights.pretrained import PretrainedRow, rows

ROWS = rows()
OF_TIMM = [row for row in ROWS if row.id.startswith("timm/")]
OTHERS = [row for row in ROWS if not row.id.startswith("timm/")]
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
    assert row.size == f"{row.size.partition('/')[0]}/{row.patch_size}"


@pytest.mark.parametrize("row", OF_TIMM, ids=names(OF_TIMM))
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
