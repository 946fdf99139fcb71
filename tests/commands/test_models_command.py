"""`vitrail models`: the table of sizes, and the table of checkpoints."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from command_line import Typed
from vitrail import terminal
from vitrail.settings import PATCHES, SIZES
from vitrail.settings.families import FAMILIES


def test_models_lists_every_size_and_loads_no_compiler() -> None:
    """In a process of its own: torch's compiler takes seconds to load, and so would the checks of types in tests."""
    code = (
        "import sys, vitrail.cli; vitrail.cli.main(['models']); sys.exit(bool({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stderr == ""
    lines = [line.split() for line in said.stdout.splitlines() if line]
    rows = {words[0]: words for words in reversed(lines)}
    assert {f"{size}/{patch}" for size in SIZES for patch in PATCHES} <= rows.keys()
    for name, parameters in (("Ti/16", "5,717,416"), ("S/16", "22,050,664"), ("B/16", "86,567,656"), ("H/14", "632,045,800")):
        assert rows[name][5] == parameters
    assert rows["B/16"][4:7:2] == ["197", "35.13"]
    for family in FAMILIES.values():
        for name in family.names:
            assert rows[name][-1] in ("MB", "GB"), name
    line = "cait_xxs24 to cait_m48: a CaiT, Touvron et al. 2021, https://arxiv.org/abs/2103.17239"
    assert line in said.stdout.splitlines()


def test_models_at_another_size(vitrail: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "vit", dataclasses.replace(FAMILIES["vit"], names=("Ti/16",)))
    for family in [family for family in FAMILIES if family != "vit"]:
        monkeypatch.setitem(FAMILIES, family, dataclasses.replace(FAMILIES[family], names=(), paper=""))
    said = vitrail("models", "--img-size", "224x448", "--num-classes=2", "--batch-size=2").out
    assert re.search(r"^Ti/16 +192 +12 +3 +393 .*( +\S+ [kMG]B){4}\s*$", said, re.M)  # weights, and memory of activations


def test_models_lists_pretrained_checkpoints_one_a_line(vitrail: Typed) -> None:
    said = vitrail("models", "--pretrained")
    assert (said.code, said.err) == (0, "")
    for line in (
        r"timm/vit_base_patch16_224.augreg_in21k_ft_in1k +B/16 +224 +IN-21k, IN-1k +84\.5 +timm +apache-2\.0",
        r"timm/vit_small_patch14_dinov2.lvd142m +S/14 +518 +LVD-142M +81\.1 +dinov2, linear +apache-2\.0",
        r"facebook/vit-mae-base +B/16 +224 +IN-1k +- +- +apache-2\.0",
        r"  openclip +mlfoundations/open_clip, .*",
    ):
        assert re.search(f"^{line}$", said.out, re.M), line


def test_pretrained_checkpoints_as_json(vitrail: Typed) -> None:
    listed = json.loads(vitrail("models", "--pretrained", "--json").out)
    (row,) = (row for row in listed if row["id"] == "timm/deit3_base_patch16_224.fb_in22k_ft_in1k")
    assert (row["size"], row["img_size"], row["top1"], row["licence"]) == ("B/16", 224, 85.7, "apache-2.0")
    assert row["shape"] == {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
    assert row["data"] == ["ImageNet-22k", "ImageNet-1k"]
    assert row["source"]["how"] == "own head"


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_cuts_no_id(vitrail: Typed, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    from rich.console import Console

    from vitrail.weights import pretrained

    monkeypatch.setattr(terminal, "make_console", lambda: Console(width=width, highlight=False, markup=False))
    lines = vitrail("models", "--pretrained").out.splitlines()
    for row in pretrained.rows():
        assert lines[lines.index(row.id) + 1].startswith(f"  {row.size} ")
