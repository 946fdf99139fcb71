"""Names of files, classes and tensors are printed and not obeyed, by every command."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest
import timm
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from cases import ImageFolder
from command_line import TINY, Said, Typed
from vitrail import cli
from vitrail.text import is_shown

NASTY = "a\x1b[31m[bold]:smile:\u202e$x_1$\u2028"


def shows_as_lines(*texts: str) -> bool:
    """Whether a terminal would obey nothing in them."""
    return all(is_shown(c) or c == "\n" for text in texts for c in text)


def test_names_of_files_and_classes_are_shown_and_not_obeyed(
    vitrail: Typed, image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photos = image_folder({"train": {NASTY: 8, "b\n": 8}, "test": {NASTY: 2, "b\n": 2}})
    monkeypatch.chdir(tmp_path)
    (photos / "test" / NASTY / f"{NASTY}\t\n.png").write_bytes(b"no image")
    (photos / "test" / NASTY / os.fsdecode(b"\xff.jpg")).write_bytes((photos / "test" / NASTY / "0.jpg").read_bytes())
    model = ["--model.weights", "none", "--model.img_size", "16", "--data.max_bad", "1", "--out", f"runs{NASTY}/one"]
    for words in (
        ["check", photos],
        ["train", photos, *TINY, *model],
        ["evaluate", f"runs{NASTY}/one"],
        ["evaluate", f"runs{NASTY}/one", "--json", "--split", "train"],
        ["predict", f"runs{NASTY}/one", photos / "test", "--top", "2"],
        ["predict", f"runs{NASTY}/one", photos / "test", "--json"],
        ["explain", f"runs{NASTY}/one", photos / "test", "--steps", "2", "--out", f"explained{NASTY}"],
        ["probe", f"runs{NASTY}/one", "--shots", "1", "--draws", "1"],
        ["convert", f"runs{NASTY}/one", f"converted{NASTY}", "--to", "timm"],
        ["show", f"runs{NASTY}/one"],
        ["train", photos, "--recipe", NASTY],
        ["show", NASTY],
        [NASTY],
    ):
        said = vitrail(*words)
        assert shows_as_lines(said.out, said.err), words
        assert said.out or said.err
    assert vitrail("show", f"nowhere{NASTY}").err.count("\n") == 1
    lines = Path(f"runs{NASTY}/one/skipped.txt").read_text(encoding="utf-8").splitlines()
    assert [line.count("\t") for line in lines] == [1]
    rows = json.loads(vitrail("predict", f"runs{NASTY}/one", photos / "test", "--json").out)
    assert f"{NASTY}\t\n.png" in {Path(row["path"]).name for row in rows}, "JSON has the names as they are"
    assert {row["label"] for row in rows} <= {NASTY, "b\n", None}


ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=12) | st.text(
    "\x1b[31m]\n\r\t\x1e\x85\u2028\u202e\u200d\udcff\ufeff:smile:$_,\"'{}", min_size=1, max_size=12
)


def can_be_a_file(name: str) -> bool:
    """Whether a file system takes the name."""
    try:
        return 0 < len(os.fsencode(name)) < 100 and not {"/", "\0"} & set(name) and name not in (".", "..")
    except UnicodeEncodeError:
        return False


def type_foreign(*words: str | Path) -> Said:
    """Type a command whose input holds foreign text; what it prints must be lines, and an error one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(map(str, words)))
    said = Said(code, out.getvalue(), err.getvalue())
    assert shows_as_lines(said.out, said.err), said
    assert code in (0, 1, 2)
    (said.out + said.err).encode()
    if code == 2:
        assert len([line for line in said.err.splitlines() if line.startswith("vitrail: ")]) == 1, said
        assert said.err.endswith("\n")
    return said


@pytest.fixture(scope="module")
def tiny_state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_classes=2, img_size=32)
    return {name: value.contiguous() for name, value in model.state_dict().items()}


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(
    text=ANY_TEXT, key=st.sampled_from(["num_attention_heads", "hidden_act", "architecture", "model_type", "image_size"])
)
@hypothesis.example(text="\x1e", key="num_attention_heads")
@hypothesis.example(text="\u2028", key="hidden_act")
@hypothesis.example(text="\udcff\x1b[2J", key="architecture")
def test_show_of_a_foreign_config_is_lines(tiny_state: dict[str, torch.Tensor], text: str, key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_file(tiny_state, Path(folder, "model.safetensors"))
        Path(folder, "config.json").write_text(json.dumps({key: text, text: text, "id2label": {"0": text, "1": "b"}}))
        type_foreign("show", folder, "--verbose", "--img-size", "32", "--model.num_heads", "3")
        if key == "num_attention_heads":
            type_foreign("show", folder, "--img-size", "32")


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(text=ANY_TEXT.filter(lambda text: text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)))
@hypothesis.example(text="\x1b[2J\u2028")
def test_show_of_foreign_keys_of_weights_is_lines(tiny_state: dict[str, torch.Tensor], text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        save_file({**tiny_state, text or "empty": torch.ones(2), f"blocks.{text}.weight": torch.ones(3)}, path)
        sides = ("--img-size", "32", "--model.num_heads", "3")
        type_foreign("show", path, *sides)
        type_foreign("show", path, "--verbose", "--no-strict", *sides)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(kind=ANY_TEXT.filter(can_be_a_file), name=ANY_TEXT.filter(can_be_a_file))
@hypothesis.example(kind="a\x1e", name="\udcff\u2028.png")
@hypothesis.example(kind="a\n", name="\x1b]0;title\x07.jpg")
def test_check_of_foreign_names_is_lines(kind: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for place in (kind, "other"):
            Path(folder, place).mkdir(exist_ok=True)
            for number in range(2):
                Image.new("L", (4, 4), 40 * number).save(Path(folder, place, f"{number}.png"))
        Path(folder, kind, name).write_bytes(b"no image")
        type_foreign("check", folder)
        said = type_foreign("check", folder, "--json")
        if said.code != 2:
            json.loads(said.out)


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(label=ANY_TEXT, name=ANY_TEXT.filter(can_be_a_file))
@hypothesis.example(label="a\x1b[31m\r", name="\udcff.png")
@hypothesis.example(label="\ud800$\\frac{", name="a\rb")
def test_predict_of_foreign_names_is_lines(run: Path, label: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, photos = Path(place, "run"), Path(place, "photos")
        photos.mkdir()
        shutil.copytree(run, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["label_names"] = [f"{number}{label}" for number in range(10)]
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        Image.new("L", (28, 28)).save(photos / "image.png")
        (photos / "image.png").rename(photos / name)
        said = type_foreign("predict", folder, photos / name)
        assert said.code == 0, said.err
        (row,) = json.loads(type_foreign("predict", folder, photos / name, "--json").out)
        assert (row["path"], row["label"][1:]) == (str(photos / name), label)
        out = io.StringIO(newline="")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert cli.main(["predict", str(folder), str(photos / name), "--csv"]) == 0
        if "\0" not in label:  # csv of Python 3.11 reads no NUL
            _, cells = csv.reader(io.StringIO(out.getvalue(), newline=""))
            assert (cells[0], cells[1][1:]) == (str(photos / name), label)
