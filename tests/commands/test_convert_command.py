"""`vitrail convert`: how the result opens, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import TINY, Typed
from vitrail import cli


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model all libraries know."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert cli.main(["train", "fashion-sample", "--model", "Ti/4", "--out", str(folder), *TINY]) == 0
    return folder


@pytest.mark.parametrize(
    ("to", "name", "made", "opens"),
    [
        ("timm", "there", ["config.json", "model.safetensors"], 'timm.create_model("local-dir:{}", pretrained=True)'),
        (
            "hf",
            "there",
            ["config.json", "model.safetensors", "preprocessor_config.json"],
            'transformers.ViTForImageClassification.from_pretrained("{}")',
        ),
        ("npz", "there.npz", [], 'vitrail.load("{}", mlp="gelu")'),
    ],
)
def test_convert_says_how_it_opens(
    vitrail: Typed, plain_run: Path, tmp_path: Path, to: str, name: str, made: list[str], opens: str
) -> None:
    there = tmp_path / "new" / name
    said = vitrail("convert", plain_run, there, "--to", to)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("vitrail · ")
    assert f"Written: {there}. It opens with\n  {opens.format(there)}\n" in said.out
    assert ("Note: this model has the exact GELU" in said.out) is (to == "npz")
    assert sorted(path.name for path in there.iterdir()) == made if made else there.is_file()
    again = vitrail("convert", plain_run, there, "--to", to)
    assert (again.code, again.out) == (2, "")
    assert again.err == f"vitrail: {there} exists; give another destination, or overwrite=True (--overwrite)\n"
    assert vitrail("convert", plain_run, there, "--to", to, "--overwrite", "--verbose").out.count("exact    blocks.0") > 5


def test_convert_refuses_by_name_and_names_who_can(vitrail: Typed, plain_run: Path, run: Path, tmp_path: Path) -> None:
    said = vitrail("convert", plain_run, tmp_path / "there", "--to", "torchvision")
    assert said.code == 2
    assert said.err == (
        'vitrail: torchvision\'s VisionTransformer has no in_channels 1, only 3; convert it to "timm" or "hf" or "npz"\n'
    )
    assert "own run folders hold it" in vitrail("convert", run, tmp_path / "there", "--to", "timm").err
    assert not list(tmp_path.iterdir())


def test_convert_changes_a_field_on_the_way(vitrail: Typed, plain_run: Path, tmp_path: Path) -> None:
    said = vitrail("convert", plain_run, tmp_path / "there", "--to=timm", "--model.norm_eps=1e-5", "--model.num_classes=0")
    assert said.code == 0, said.err
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("vit_base_patch16_clip_224", 0)
