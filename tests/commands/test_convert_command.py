"""`vitrail convert`: how the result opens, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

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


@pytest.fixture
def home_made(tmp_path: Path) -> Path:
    """A checkpoint of nn.TransformerEncoder, in a container, beside a counter."""
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    parts = {"cut": nn.Conv2d(3, 24, 4, 4), "encoder": nn.TransformerEncoder(layer, 2), "kinds": nn.Linear(24, 5)}
    state = {"summary": torch.zeros(1, 1, 24), "places": torch.zeros(1, 17, 24), **nn.ModuleDict(parts).state_dict()}
    torch.save({"model_state": state, "epoch": 3}, tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


ANSWERS = ("num_heads=4", "norm_first=true", "mlp=gelu", "pixel_scale=unit")


def test_names_are_suggested_answered_and_taken(vitrail: Typed, home_made: Path, tmp_path: Path) -> None:
    asked = vitrail("convert", home_made, tmp_path / "timm", "--to", "timm")
    assert (asked.code, asked.out, asked.err.count("\n")) == (2, "", 1)
    assert re.findall(r"(?:do not tell|; nor) (\w+) \(", asked.err) == [word.partition("=")[0] for word in ANSWERS]
    assert vitrail("convert", home_made, tmp_path / "timm", "--to", "timm", "--answers", *ANSWERS).code == 0

    names = tmp_path / "names.yaml"
    said = vitrail("convert", home_made, "--suggest-names", names)
    assert (said.code, said.err) == (0, "")
    assert f"Written: {names}" in said.out
    assert "to be answered: num_heads, norm_first, mlp, pixel_scale." in said.out
    again = vitrail("convert", home_made, "--suggest-names", names)
    assert (again.code, again.err) == (2, f"vitrail: {names} exists; give another file, or --overwrite\n")
    assert "do not tell num_heads" in vitrail("show", names).err
    text = names.read_text()
    for answer in ANSWERS:
        name, _, value = answer.partition("=")
        text = re.sub(rf"# {name}: \S+", f"{name}: {value}", text)
    names.write_text(text)
    assert vitrail("convert", home_made, tmp_path / "again", "--to", "timm", "--names", names).code == 0
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "timm" / file).read_bytes()
    assert "width 24, 2 blocks, 4 heads" in vitrail("show", names).out  # in the place of the checkpoint


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--answers", "num_heads"), '--answers "num_heads" is not of the form FIELD=VALUE'),
        (("--answers", "heads=4"), '"heads" is not a field of a model; did you mean "num_heads"?'),
        (("--names", "nowhere.yaml"), "nowhere.yaml can't be read: No such file or directory; write one with vitrail convert"),
        (("--suggest-names", "names.yaml"), "--suggest-names converts nothing"),
    ],
)
def test_what_does_not_go_with_names(vitrail: Typed, home_made: Path, words: tuple[str, ...], told: str) -> None:
    said = vitrail("convert", home_made, home_made.parent / "there", "--to", "timm", *words)
    assert (said.code, said.out) == (2, "")
    assert told in said.err
    assert said.err.count("\n") == 1


def test_convert_needs_a_target(vitrail: Typed, home_made: Path) -> None:
    said = vitrail("convert", home_made)
    assert (said.code, said.err) == (
        2,
        "vitrail: convert needs DST and --to timm|hf|torchvision|npz; see vitrail convert --help\n",
    )
