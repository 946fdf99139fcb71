"""The command line: the overview, pages of help, and mistakes in one line. Each command's tests are in commands/."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import Typed, in_a_process
from vitrail import cli, commands

# What it says of itself


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(vitrail: Typed, words: list[str]) -> None:
    said = vitrail(*words)
    assert (said.code, said.err) == (0, "")
    for command in cli.COMMANDS:
        assert f"  vitrail {command} " in said.out


def test_the_version_is_the_packages(vitrail: Typed) -> None:
    assert re.fullmatch(r"vitrail \d+\.\d+\.\d+\n", vitrail("--version").out)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_page_of_help(vitrail: Typed, command: str) -> None:
    said = vitrail(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"usage: vitrail {command} ")
    assert max(map(len, said.out.splitlines())) <= 125
    assert "\x1b" not in said.out


@pytest.mark.parametrize("words", [[], *([command] for command in cli.COMMANDS)])
def test_help_needs_no_torch(words: list[str]) -> None:
    code = (
        f"import sys, vitrail.cli; code = vitrail.cli.main({[*words, '--help']}); "
        "print({'torch', 'matplotlib', 'numpy', 'PIL'} & set(sys.modules) or 'none', file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "none\n")


def test_each_command_is_a_file_and_a_row() -> None:
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__", "runs"}  # "runs" is for several
    assert files == set(cli.COMMANDS)
    assert [module.rpartition(".")[2] for module in cli.COMMANDS.values()] == list(cli.COMMANDS)


# Mistakes


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian", 'vitrail: "trian" is none of the commands .*; did you mean "train"\\?'),
        ("zzz", "vitrail --help says what each does"),
        (
            "train --recipe fashion-smaple",
            'recipe "fashion-smaple" is none of .*fashion-sample.*; did you mean "fashion-sample"',
        ),
        ("train --recipe mine.yaml", "use --config mine.yaml"),
        ("train --config nowhere.yaml", "nowhere.yaml: no such file or directory"),
        ("train --recpie cifar10", "--recpie is not an option of vitrail train; did you mean --recipe\\?"),
        ("train --model.num_layers 3", "did you mean --model.depth\\?"),
        ("train --model.image_size=64", "did you mean --model.img_size\\?"),
        ("train --model.layer_scale_init_value 1", "did you mean --model.init_values\\?"),
        ("train --lr 1e-3", "--lr is not an option of vitrail train; did you mean --optim.lr\\?"),
        ("train --batch-size 3", "did you mean --train.batch_size\\?"),
        ("train --epochs 3", "did you mean --train.epochs\\?"),
        ("train --minuts 3", "did you mean --minutes\\?"),
        ("train --augment.rand_augment.std 3", "did you mean --augment.rand_augment"),
        ("train --xyzzy", "--xyzzy is not an option of vitrail train; see vitrail train --help"),
        ("train --model B16", 'model "B16" is not a name .*; did you mean "B/16"\\?'),
        ("train --model b/16", 'size "b" is none of .*; did you mean "B"\\?'),
        ("train --model Q/16", 'size "Q" is none of Ti, S, B, L, H, g'),
        ("train --model", "expected one argument"),
        ("train --model.depth 2.5", 'model.depth "2.5": it takes a whole number'),
        ("train --model.embed_dim 101", "embed_dim 101 is not a multiple of num_heads"),
        ("train --model.img_size 96x", "it takes a whole number, or height x width, as in 96x128"),
        ("train --optim.name adam", 'optim.name "adam": it takes one of adamw, muon, sgd; did you mean "adamw"\\?'),
        ("train --optim.lr -1", "optim.lr -1.0 must be above 0"),
        ("train --optim.betas 0.9", "it takes two numbers"),
        ("train --minutes soon", 'train.minutes "soon": it takes a number'),
        ("train --minutes 2 --train.epochs 3", "only one of epochs, steps and minutes can be set"),
        ("train --train.compile perhaps", "it takes true or false"),
        ("train --augment.rand_augment 3", "it takes fields, as in {n: 2, m: 9.0, mstd: 0.5}, or null"),
        ("train fashion-sampel", 'did you mean "fashion-sample"'),
        ("train a b", "unrecognized arguments: b"),
        ("resume", "the following arguments are required: RUN; see vitrail resume --help"),
        ("resume nowhere", "nowhere"),
        ("evaluate nowhere", '"nowhere" does not exist, and is neither a Hub id nor a name'),
        ("evaluate nowhere --splt test", "did you mean --split\\?"),
        ("evaluate nowhere --split tets", "invalid choice: 'tets'"),
        ("predict nowhere", "the following arguments are required: IMAGES"),
        ("predict nowhere a.png", '"nowhere" does not exist, and is neither a Hub id nor a name'),
        ("predict nowhere a.png --top 0", "--top 0 must be at least 1"),
        ("predict nowhere a.png --json --csv", "not allowed with"),
        ("probe", "the following arguments are required: WEIGHTS"),
        ("probe nowhere fashion-sample", "nowhere"),
        ("probe B/16 fashion-sample", '"B/16" is a shape with random weights; give a run or a checkpoint'),
        ("probe nowhere fashion-sample --shots 1,0", '--shots: "1,0": give whole numbers of at least 1, as in 1,5,10'),
        ("probe nowhere fashion-sample --draws 3", "--draws 3 is for few images a class; add --shots 1,5,10"),
        ("probe nowhere fashion-sample --precision fp8", "invalid choice: 'fp8'"),
        ("check nowhere", 'data "nowhere" is neither a folder nor one of'),
        ("models --img-size big", 'model.img_size "big": it takes'),
        ("models --img-size 225", "225"),
        ("models --pretrained --img-size 96", "--img-size is for the table of sizes"),
        ("models --json", "--json is for the table of checkpoints; add --pretrained"),
        ("show B17", "B17"),
        ("show B/16 --img-siez 3", "did you mean --img-size\\?"),
        ("show B/16 --model.num_layers 3", "did you mean --model.depth\\?"),
        ("show B/16 --model.depth x", 'model.depth "x": it takes a whole number'),
        ("convert", "the following arguments are required: source"),
        ("convert nowhere there", "convert needs DST and --to timm"),
        ("convert nowhere there --to timm", "nowhere"),
        ("convert nowhere there --to tim", '"tim" is none of timm, hf, torchvision, npz; did you mean "timm"\\?'),
        ("convert nowhere there.txt --to npz", 'whose suffix is .npz, not ".txt"'),
        ("convert B/16 there --to timm --overwite", "did you mean --overwrite\\?"),
        ("convert B/16 there --to timm --model.dept 1", "did you mean --model.depth\\?"),
        ("export nowhere", "the following arguments are required: --to"),
        ("export nowhere --to onxx", 'format "onxx" is none of onnx, openvino, torch, .*; did you mean "onnx"\\?'),
        ("export nowhere --to torch", '"nowhere" does not exist, and is neither a Hub id nor a name'),
        ("export nowhere --to torch --dynamic sizes", "invalid choice: 'sizes'"),
        ("push nowhere me/model", 'run folder "nowhere" does not exist'),
        ("push nowhere", "the following arguments are required: OWNER/NAME"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    vitrail: Typed, line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = vitrail(*line.split())
    assert said.code == 2
    assert said.out == ""
    assert re.fullmatch(r"vitrail: [^\n]+\n", said.err), said.err
    assert re.search(says, said.err), said.err
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_traceback_shows_where_a_mistake_came_from() -> None:
    short, long = in_a_process("trian"), in_a_process("--traceback", "trian")
    assert short.returncode == 2
    assert "Traceback" not in short.stderr
    assert "Traceback" in long.stderr
    assert long.returncode != 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"), "runs/a: the disk is full; make room there, or "),
        (RuntimeError("Error serializing: No space left on device (os error 28)"), "the disk is full; make room there, or "),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/a"), "runs/a: permission denied"),
        (ValueError("two\n  lines"), "two lines"),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
            "memory ran out; use a smaller batch (--train.batch_size",
        ),
    ],
)
def test_what_goes_wrong_outside_is_one_line(
    vitrail: Typed, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    monkeypatch.setattr("vitrail.commands.check.run", raising(error))
    said = vitrail("check")
    assert said.code == 2
    assert said.err.startswith(f"vitrail: {line}")
    assert said.err.count("\n") == 1


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.commands.check.run", raising(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        cli.main(["check"])


def test_ctrl_c_is_one_line_and_code_130(vitrail: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.commands.check.run", raising(KeyboardInterrupt()))
    assert vitrail("check") == (130, "", "vitrail: interrupted\n")
    monkeypatch.setattr("vitrail.commands.check.run", raising(KeyboardInterrupt("step 9 is saved")))
    assert vitrail("check") == (130, "", "vitrail: interrupted: step 9 is saved\n")


def test_a_pipe_that_nobody_reads_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "vitrail", "--help"], stdout=nobody, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        raise error

    return command
