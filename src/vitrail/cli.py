"""The command line: one thin function per command, and every mistake in one line.

What is heavy is imported inside the functions, so that `vitrail --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import errno
import functools
import importlib.metadata
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail import terminal
from vitrail.data.quiet import ignore_pillow_warnings
from vitrail.text import one_line as joined

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from vitrail.config import Settings
    from vitrail.data.sources import Source, Split
    from vitrail.evaluate import Scores
    from vitrail.train import Run

OK, SOME_FAILED, MISTAKE = 0, 1, 2

OVERVIEW = """Vitrail: Vision Transformers from a folder of images to a trained, measured model.

  vitrail check DATA              looks through a data set before training
  vitrail train [DATA]            trains; without DATA, on the sample that comes with the package
  vitrail pretrain [DATA]         trains without labels, on any folder of images, for `train --weights RUN`
  vitrail resume RUN              goes on where a run stopped
  vitrail evaluate RUN [DATA]     accuracy with 95 % intervals, per class, and the confusion matrix
  vitrail predict RUN IMAGES…     labels and probabilities of images
  vitrail explain RUN IMAGES…     what the model looks at, and what speaks for a class: pictures, with a score beside each
  vitrail probe WEIGHTS DATA      what frozen features are worth: k-NN, a linear probe, a few images a class

  vitrail models                  the sizes there are
  vitrail show NAME               tokens, parameters, FLOPs and memory of one
  vitrail convert SRC DST --to …  a checkpoint for timm, transformers (hf), torchvision, or as Google's .npz
  vitrail push RUN OWNER/NAME     a run to the Hugging Face Hub, with a model card

DATA is a folder with one folder per class, or with labels.csv; or one of fashion-sample, fashion-mnist, mnist, cifar10,
cifar100, imagenet. `pretrain` also takes a folder without classes.
RUN is the folder that a training wrote.

  vitrail train --minutes 2 --out runs/first
  vitrail evaluate runs/first
  vitrail predict runs/first photo.png

vitrail COMMAND --help says more; vitrail --version says which this is; --traceback shows where an error came from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 when some images could not be read, 2 for a user's mistake, 128 + n after signal n.

    Ctrl-C is signal 2, SIGTERM 15, SIGUSR1 10.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    if hasattr(sys.stdin, "reconfigure"):  # a list of files may hold names that are no UTF-8
        sys.stdin.reconfigure(errors="surrogateescape")
    warnings.formatwarning = terminal.warning_line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    ignore_pillow_warnings()
    try:
        code = run(words)
        sys.stdout.flush()  # a pipe that nobody reads shows here, not at exit
        if "TORCHELASTIC_RUN_ID" in os.environ:  # one of several processes, all of whose work is done and written
            sys.stderr.flush()
            os._exit(code)  # torch's threads abort now and then as the interpreter is taken down, and the run would have failed
        return code
    except SystemExit as leave:  # argparse, after --help
        return int(leave.code or 0)
    except BrokenPipeError:  # `vitrail predict … | head`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except KeyboardInterrupt as stop:  # a training says what it has saved
        if in_front():
            terminal.report(": ".join(["interrupted", *map(str, stop.args)]))
        return 128 + getattr(stop, "number", signal.SIGINT)
    except Exception as error:
        if type(error).__name__ == "Ended":  # the first of several processes has said why
            return MISTAKE
        line = one_line(error)
        if (
            line is None
            and "RANK" in os.environ
            and re.search(r"Connection (closed|reset)|Timed out waiting|[Ww]atchdog", str(error))
        ):
            line = "another process ended, or stands still; its own message says why"
        if traceback or line is None:
            raise
        terminal.report(line, process="" if in_front() else f", process {os.environ['RANK']}")
        return MISTAKE


def in_front() -> bool:
    """Whether this is the process that talks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def run(words: list[str]) -> int:
    """The command that the words name, with the rest of them."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return OK
    if words[0] == "--version":
        terminal.say(f"vitrail {importlib.metadata.version('vitrail')}")
        return OK
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
        hint = f'did you mean "{close[0]}"?' if close else "vitrail --help says what each does"
        raise ValueError(f'"{words[0]}" is none of the commands {", ".join(COMMANDS)}; {hint}')
    return COMMANDS[words[0]](words[1:])


def one_line(error: Exception) -> str | None:
    """What to tell the user; None for an error that is our own bug, which deserves its traceback."""
    text = joined(error)
    if isinstance(error, OSError) and error.errno is None:  # our own words
        return text
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        where = getattr(error, "filename", None)
        return f"{f'{where}: ' if where else ''}the disk is full; make room there, or write elsewhere"
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names[:1], (error.strerror or "").lower() or text or type(error).__name__])
    # torch's error, by name: importing torch here would be slow. On a CPU and on a Mac it is a RuntimeError.
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or re.search(r"allocate memory|out of memory", text):
        return "memory ran out; use a smaller batch (--train.batch_size, or --batch-size), or --train.checkpointing true"
    return text if isinstance(error, ValueError) else None


TRAIN_HELP = """Trains a Vision Transformer, measures it, and writes a run folder.

  vitrail train                                   the sample that comes with the package
  vitrail train PHOTOS --minutes 30               a folder with one folder per class
  vitrail train PHOTOS --weights W                fine-tunes a Hub id, a file, a folder or a run
  vitrail train cifar10 --model S/4 --optim.lr 5e-4
  vitrail train PHOTOS --model torchvision:resnet50   a CNN in the same loop; timm:efficientnet_b0 …

--model B/16 is short for --model.name B/16, --weights W for --model.weights W, --minutes 2 for --train.minutes 2.
The command line wins over --config, which wins over --recipe, which wins over the defaults in brackets.
A length (epochs, steps or minutes) replaces any other length; a model's name starts its section afresh."""


PRETRAIN_HELP = """Trains a backbone without labels, scores its embedding, and writes a run folder to go on from.

  vitrail pretrain                                the sample that comes with the package
  vitrail pretrain ALBUM --minutes 30             images loose, or in any tree of folders
  vitrail train PHOTOS --weights RUN              then: fine-tune it on what is labelled
  vitrail pretrain ALBUM --mae.mask_ratio 0.6 --model.depth 8

Method mae (He et al. 2022): most patches are hidden, the others are encoded, and a light decoder predicts the pixels of
the hidden ones. Each evaluation prints the k-NN accuracy of the embedding where images have classes, else its
effective rank, and draws originals, visible patches and reconstructions into RUN/reconstructions.

DATA is what `vitrail train` takes, or a folder without classes: train, val and test in it are splits, else
data.val_fraction of the images is held out. Settings come in the order of `vitrail train`; those of heads and labels
have no effect, and a note names them."""


MEMORY_HELP = """Parameters and FLOPs (of one image's forward pass, a multiply-add is two) are exact. Weights are fp32.
Memory is what activations take: in inference at most at one time, in training until the backward pass."""

SHOW_HELP = f"""Tokens, parameters, FLOPs and memory of one model; of a checkpoint, also what became of every tensor.

  vitrail show B/16 --img-size 384
  vitrail show timm/vit_small_patch16_224.augreg_in21k --img-size 96x128 --num-classes 7
  vitrail show weights.pth --model.num_heads 8 --verbose
  vitrail show S/16 --img-size 96x128 --in-channels 4 --model.depth 6
  vitrail show Ti/16 --groups --optim.name muon
  vitrail show torchvision:resnet50

{MEMORY_HELP}"""

PROBE_HELP = """What a model's features are worth on DATA without any training of it: k-NN, and a linear probe.

  vitrail probe timm/vit_small_patch16_224.augreg_in21k PHOTOS
  vitrail probe runs/first cifar10 --shots 1,5,10

Features are kept: a second look takes seconds. The last line says whether fine-tuning can be expected to do better."""

EXPLAIN_HELP = """What a model looks at, and what speaks for a class: a PNG for each image, with a number beside each map.

  vitrail explain runs/first photo.jpg                        what speaks for the class that it predicts
  vitrail explain runs/first photo.jpg --query cat            … for a class of your choice
  vitrail explain runs/first photo.jpg --compare              all methods side by side, with their scores
  vitrail explain runs/first photo.jpg --method attention --layers all --heads all
  vitrail explain W photo.jpg --method similarity --query 120,80 --img-size 448
  vitrail explain runs/first --model                          the model as a whole: a table, a picture, what to conclude

Methods: relevance (gradient-weighted attention), gradcam, integrated-gradients: what speaks for a class; attention,
rollout: where tokens look; pca, similarity: which patches are alike.

The score: patches are put into a blurred image (insertion) and taken from the image (deletion) in the order of the
map, and the numbers are areas under the class's probability. A map that tells what the model goes by has a high
insertion and a low deletion. Beside it stand random maps, and the map that shuffled weights make."""

CONVERT_HELP = """Writes a checkpoint that another library loads strictly, with equal outputs; what it can't hold is refused.

  vitrail convert runs/first first-timm --to timm      a folder: timm.create_model("local-dir:first-timm", …)
  vitrail convert timm/vit_small_patch16_224.augreg_in21k vit.npz --to npz   a file: Google's layout
  vitrail convert weights.pth weights-hf --to hf --model.num_heads 8
  vitrail convert google/vit-base-patch16-224 vit.pth --to torchvision --model.norm_eps 1e-6

SRC is a run, a Hub id, a file or a folder of anybody's. A field of the model answers what no tensor tells, or changes it."""


# --------------------------------------------------------------------------------------------------------------------
# Commands, in the order of the work


def check(words: list[str]) -> int:
    """`vitrail check DATA`."""
    parser = terminal.make_parser(
        "check",
        "Looks through a data set before training: classes, sizes, unreadable files, images on two sides or under two classes.",
        "Exit code: 0, or 1 when files are unreadable.",
    )
    parser.add_argument("data", metavar="DATA", help="a folder, or the name of a set")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    args = terminal.parse(parser, words)

    from vitrail.data.check import check as look_through

    report = look_through(args.data)
    if args.json:
        sizes = [{"height": height, "width": width, "images": images} for (height, width), images in report.sizes.items()]
        bad = [{"path": path, "reason": reason} for path, reason in report.bad]
        found = {"name": report.name, "images": report.images, "counts": report.counts, "sizes": sizes, "modes": report.modes}
        if report.labels is not None:
            found["labels"] = [{"labels": number, "images": images} for number, images in report.labels.items()]
        alike = {"duplicates": report.duplicates, "contradictions": report.contradictions}
        values = {
            split: dataclasses.asdict(used) | {"range": used.range or "full", "warning": used.few_levels(used.range)}
            for split, used in report.values.items()
        }
        terminal.print_json({**found, "values": values, "bad": bad, **alike, "notes": report.notes})
    else:
        print(report)
    return SOME_FAILED if report.bad else OK


def train(words: list[str]) -> int:
    """`vitrail train [DATA]`."""
    usage = "[DATA] [--weights W] [--recipe R] [--model B/16] [--minutes 2] [--out RUN] [--SECTION.FIELD VALUE]…"
    parser = run_parser("train", TRAIN_HELP, usage=usage, recipe="the one for DATA")
    parsed = terminal.parse_settings(parser, words)

    from vitrail.train.run import train as start

    return finish_run(start, parsed)


def pretrain(words: list[str]) -> int:
    """`vitrail pretrain [DATA]`."""
    usage = "[DATA] [--method mae] [--recipe R] [--model Ti/16] [--minutes 2] [--out RUN] [--SECTION.FIELD VALUE]…"
    parser = run_parser("pretrain", PRETRAIN_HELP, usage=usage, recipe="the method's own")
    parser.add_argument("--method", type=str, metavar="M", help="mae, the masked autoencoder [mae]")
    parsed = terminal.parse_settings(parser, words)

    from vitrail.train.run import pretrain as start

    return finish_run(functools.partial(start, method=parsed.get("method") or "mae"), parsed)


def run_parser(command: str, description: str, *, usage: str, recipe: str) -> ArgumentParser:
    """The parser of a command that trains: data, recipe, run folder, and every setting."""
    from vitrail.train import settings

    parser = terminal.make_settings_parser(command, description, usage=usage)
    parser.add_argument("path", nargs="?", metavar="DATA", help="a folder, or the name of a set [fashion-sample]")
    parser.add_argument("--recipe", type=str, metavar="R", help=f"one of {', '.join(settings.recipes())} [{recipe}]")
    parser.add_argument("--config", type=str, metavar="FILE", help="YAML file of settings; a run's config.yaml is one")
    parser.add_argument(
        "--out",
        type=str,
        metavar="RUN",
        help="the run folder, a new one but for --resume [the next in runs/]",
    )
    parser.add_argument(
        "--resume", type=str, choices=["auto"], help="auto: go on with the run in --out where there is one, else begin it"
    )
    settings.add_settings(parser)
    return parser


def finish_run(start: Callable[..., Run], parsed: Namespace) -> int:
    """Run a training with what was parsed by `run_parser`, and print what is next."""
    from vitrail.train import settings
    from vitrail.train.folder import Finished

    try:
        done = start(
            parsed.get("path"),
            recipe=parsed.get("recipe"),
            config=parsed.get("config"),
            out=parsed.get("out"),
            resume=parsed.get("resume"),
            **settings.layer_of(parsed),
        )
    except Finished as finished:  # all that --resume auto asks for
        if in_front():
            terminal.say(finished)
        return OK
    print_next_steps(done)
    return OK


def print_next_steps(done: Run) -> None:
    """Print where a run is and the commands that use it, in the process that talks."""
    from vitrail.tasks import TASKS

    if in_front():
        terminal.print_what_is_next(done.folder, TASKS[done.task].next_steps)


def resume(words: list[str]) -> int:
    """`vitrail resume RUN`."""
    parser = terminal.make_parser("resume", "Goes on from the last checkpoint of a run that was stopped.")
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` wrote")
    parser.add_argument("--workers", type=int, metavar="N", help="other loader processes than data.workers says; 0 for none")
    args = terminal.parse(parser, words)
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers {args.workers} must be at least 0")

    from vitrail.train.run import resume as go_on

    done = go_on(args.run, workers=args.workers)
    print_next_steps(done)
    return OK


def evaluate(words: list[str]) -> int:
    """`vitrail evaluate RUN [DATA]`."""
    parser = terminal.make_parser(
        "evaluate",
        "Measures a run: accuracy with 95 % intervals, each class, and what is taken for what.\n"
        "Of a model without classes: the k-NN accuracy of its embedding, or without labels its effective rank.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` wrote; or a checkpoint, and DATA")
    parser.add_argument("data", metavar="DATA", nargs="?", help="a folder, or the name of a set [what the run was trained on]")
    parser.add_argument("--split", choices=("train", "val", "test"), help="which images [test, else val]")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where evaluation.json, confusion.png and confusion.csv go [RUN, or a folder in it for other images]",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    terminal.add_device(parser, batch_size=256)
    args = terminal.parse(parser, words)

    from vitrail import weights
    from vitrail.data.listing import mark_output
    from vitrail.evaluate import EmbeddingScores, Evaluation, MultiLabelEvaluation, evaluate_labels, save_evaluation
    from vitrail.evaluate import evaluate as measure
    from vitrail.models.device import autocast_dtype, pick_device

    device, run = pick_device(args.device), Path(args.run, "config.yaml").is_file()
    model = weights.load(args.run).to(device)
    assert model.preprocessing is not None
    headless = not model.config.num_classes
    cfg, source = open_data(args.run, args.data, classes=not headless)
    if args.data:
        for note in source.notes:
            terminal.report(note)
    used = source.values_in_use(threads=cfg.data.workers)
    if used and (mismatch := used.mismatch(model.preprocessing.range)):
        terminal.report(mismatch)
    if not headless:
        require_same_classes(model, source, run=run)
    name = args.split or next(split for split in ("test", "val", "train") if split in source.splits)
    split = source.load(name, preprocessing=model.preprocessing, cfg=cfg.data, augment=None)
    precision = "auto" if cfg.train.precision == "fp16" and device.type != "cuda" else cfg.train.precision
    options: dict[str, Any] = {
        "preprocessing": model.preprocessing,
        "batch_size": args.batch_size,
        "device": device,
        "autocast_dtype": autocast_dtype(precision, device),  # as when the training measured itself
    }
    result: Scores
    if headless:
        result = measure_embedding(model, source, split, cfg, options)
    else:
        result = (evaluate_labels if source.multi_label else measure)(model, split, classes=source.classes, **options)

    another = args.data or args.split  # the run's own scores stay as they are
    beside = args.run if Path(args.run).is_dir() else ""  # a file or a Hub id is no place to write to
    folder = Path(args.out or (Path(beside, f"evaluation-{source.name}-{name}") if another or not run else args.run))
    folder.mkdir(parents=True, exist_ok=True)
    files = save_evaluation(result, folder, data=source.name, split=name)
    mark_output(folder, files, command="evaluate")
    if args.json:
        terminal.print_json({"data": source.name, "split": name, **result.to_dict()})
    else:
        title = f"{source.name}, {name}: {result.count:,} images"
        if isinstance(result, MultiLabelEvaluation):
            terminal.print_labels(result, title=title)
        elif isinstance(result, EmbeddingScores):
            terminal.print_embedding(result, title=title)
        else:
            assert isinstance(result, Evaluation)
            terminal.print_evaluation(result, title=title)
        terminal.say("Written: " + ", ".join(map(str, files)))
    return OK


def require_same_classes(model: Any, source: Source, *, run: bool) -> None:
    """Raises ValueError for data that the model's head does not fit; of another library's checkpoint, names may differ."""
    from vitrail.data.listing import composed

    if source.classes != tuple(map(composed, model.classes)):
        theirs, ours = terminal.listed(source.classes), terminal.listed(model.classes) or "no names"
        if run or len(source.classes) != model.config.num_classes:
            says = f"{source.name} has the classes {theirs}, and the model {model.config.num_classes:,}: {ours}"
            raise ValueError(f"{says}; give data of the model's classes")
        terminal.report(f"the checkpoint calls its classes {ours}; taken in the order of {theirs}")
    if run and source.multi_label != model.multi_label:
        kinds = ("one class an image", "any number of labels an image")
        says = f"{source.name} has {kinds[source.multi_label]}, and the model was trained on {kinds[model.multi_label]}"
        raise ValueError(f"{says}; give data of its kind")


def measure_embedding(model: Any, source: Source, split: Split, cfg: Settings, options: dict[str, Any]) -> Scores:
    """Scores of a model without a head, whose k-NN looks among the training images of the same data, as in its training."""
    from vitrail.evaluate.embedding import evaluate_embedding, has_classes, known_images

    known = None
    if "train" in source.splits and has_classes(split):
        known = known_images(source.load("train", preprocessing=model.preprocessing, cfg=cfg.data), seed=cfg.train.seed)
    return evaluate_embedding(model, split, known=known, **options)


def open_data(run: str, data: str | None, *, way_out: str = "name DATA", classes: bool = True) -> tuple[Settings, Source]:
    """A run's settings, or the defaults for another checkpoint, and the data: without a name those of the run.

    Without `classes`, the data may have none.
    """
    from vitrail import weights
    from vitrail.data.sources import open_source
    from vitrail.train import settings

    config = Path(run, "config.yaml")
    if data is None and not config.is_file():
        raise ValueError(f"{run} is no folder of `vitrail train`, so it does not say its data; {way_out}")
    cfg = settings.build([settings.read_config(config)] if config.is_file() else [])
    return cfg, open_source(data or weights.read_run(run).data, val_fraction=cfg.data.val_fraction, classes=classes)


def say_receipt(model: Any, source: str) -> None:
    """Of somebody else's weights, what was assumed of them; of a run nothing, for it says all."""
    if not Path(source, "config.yaml").is_file() and model.receipt is not None:
        print(model.receipt, file=sys.stderr)  # which are lines to be shown


def predict(words: list[str]) -> int:
    """`vitrail predict RUN IMAGES…`."""
    parser = terminal.make_parser(
        "predict",
        "Labels and probabilities of images.",
        "Exit code: 0, or 1 when some images could not be read or got no label; the others are done all the same.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` wrote; or any checkpoint with a head")
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="files, folders with all that is in them, - for a list on stdin"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print a list of objects: path, label, probability, top, error")
    shape.add_argument("--csv", action="store_true", help="print a line an image: path, label, probability, …, error")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="the K most probable classes [1]")
    terminal.add_device(parser, batch_size=32)
    args = terminal.parse(parser, words)

    from vitrail.data.files import Listed
    from vitrail.data.measure import measure_values
    from vitrail.deploy.predict import NOT_FINITE, Predictor, find_images

    if args.top < 1:
        raise ValueError(f"--top {args.top} must be at least 1")
    given = chain.from_iterable(terminal.lines(sys.stdin) if path == "-" else [path] for path in args.images)
    images = list(find_images(given))
    if not images:
        raise ValueError("stdin named no image; write one path a line")
    predictor = Predictor(args.run, device=args.device, batch_size=args.batch_size)
    say_receipt(predictor.model, args.run)
    used = measure_values(Path(), [Listed(str(path), 0) for path in images], threads=-1)
    if used and (mismatch := used.mismatch(predictor.preprocessing.range)):
        terminal.report(mismatch)
    done = list(predictor.predict(images, top=args.top))

    if args.json:
        terminal.print_json([prediction.to_dict() for prediction in done])
    elif args.csv:
        terminal.print_csv(done, top=min(args.top, len(predictor.classes)))
    else:
        terminal.print_predictions(done)
    bad = [prediction for prediction in done if prediction.error is not None]
    for prediction in bad:
        terminal.report(f"{prediction.path}: {prediction.error}")
    unread = sum(prediction.error != NOT_FINITE for prediction in bad)
    if wrong := len(bad) - unread:
        terminal.report(f"{wrong} of {len(done)} image{'s' * (len(done) > 1)} got no label: the model's output is not finite")
    return say_unread(unread, len(done)) or (SOME_FAILED if wrong else OK)


def say_unread(bad: int, images: int) -> int:
    """How many of the images could not be read, behind the reasons. Returns the exit code."""
    if not bad:
        return OK
    others = "; the others are done" if bad < images else ""
    terminal.report(f"{bad} of {images} image{'s' * (images > 1)} could not be read{others}")
    return SOME_FAILED


def probe(words: list[str]) -> int:
    """`vitrail probe WEIGHTS|RUN DATA`."""
    parser = terminal.make_parser("probe", PROBE_HELP)
    parser.add_argument("weights", metavar="WEIGHTS|RUN", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("data", metavar="DATA", nargs="?", help="a folder, or the name of a set [what the run was trained on]")
    parser.add_argument("--shots", type=terminal.counts, metavar="1,5,10", help="also learn from so many images a class")
    parser.add_argument("--draws", type=terminal.count, metavar="N", help="with --shots: times that they are drawn anew [5]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws and of what is held out [0]")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16", "auto"), default="fp32", help="of the model's pass [fp32]"
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    terminal.add_device(parser, batch_size=256)
    args = terminal.parse(parser, words)
    if args.draws and not args.shots:
        raise ValueError(f"--draws {args.draws} is for few images a class; add --shots 1,5,10, or leave it out")

    from vitrail import weights
    from vitrail.evaluate.few_shot import few_shot
    from vitrail.models.device import autocast_dtype, pick_device
    from vitrail.train import ladder
    from vitrail.weights.load import is_name

    if is_name(args.weights):
        raise ValueError(f'"{args.weights}" is a shape with random weights; give a run or a checkpoint')
    device = pick_device(args.device)
    dtype = autocast_dtype(args.precision, device)
    model = weights.load(args.weights, revision=args.revision).to(device)
    assert model.preprocessing is not None
    cfg, source = open_data(args.weights, args.data)
    views = ladder.views(source, preprocessing=model.preprocessing, cfg=cfg.data)
    seen = ladder.features(
        model, views, preprocessing=model.preprocessing, batch_size=args.batch_size, device=device, autocast_dtype=dtype
    )
    classes = len(source.classes)
    rungs = ladder.ladder(seen, num_classes=classes, device=device, seed=args.seed)
    judges = seen.get("test") or seen.get("val")
    if args.shots and judges is None:
        raise ValueError(f"--shots needs images to score on, and {source.name} has neither test nor val; add a folder of them")
    few = (
        ()
        if judges is None or not args.shots
        else few_shot(
            seen["train"], judges, shots=args.shots, draws=args.draws or 5, num_classes=classes, seed=args.seed, device=device
        )
    )

    images = {name: len(features) for name, features in seen.items()}
    if args.json:
        short = [[source.classes[k] for k in each.short] for each in few]
        shots = [
            {"shots": each.shots, "knn": each.knn.to_dict(), "probe": each.probe.to_dict(), "short": names}
            for each, names in zip(few, short, strict=True)
        ]
        terminal.print_json({"data": source.name, "images": images, "classes": classes, **rungs.to_dict(), "few_shot": shots})
    else:
        say_receipt(model, args.weights)
        terminal.print_probe(rungs, few, name=source.name, images=images, classes=source.classes)
    return OK


def explain(words: list[str]) -> int:
    """`vitrail explain RUN|WEIGHTS IMAGES…`."""
    parser = terminal.make_parser(
        "explain", EXPLAIN_HELP, "Exit code: 0, or 1 when some images could not be read; the others are done all the same."
    )
    parser.add_argument("run", metavar="RUN|WEIGHTS", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("images", metavar="IMAGES", nargs="*", help="files, or folders with all that is in them")
    parser.add_argument(
        "--method", type=terminal.method, metavar="NAME", help="see above [relevance; without a head attention]"
    )
    parser.add_argument("--layers", type=terminal.layers, metavar="0,-1", help="layers, from 0 or from the end, or all [-1]")
    parser.add_argument("--heads", type=terminal.heads, metavar="0,3", help="heads, or mean, max, min of them, or all [mean]")
    parser.add_argument(
        "--query",
        type=terminal.query,
        default="cls",
        metavar="Q",
        help="cls; x,y in pixels of what the model sees; or a class [cls]",
    )
    parser.add_argument("--discard-ratio", type=float, default=0.0, metavar="R", help="rollout: smallest weights left out [0]")
    parser.add_argument(
        "--hold-norms", action="store_true", help="relevance, gradcam: a gradient that takes the norms' scales for constants"
    )
    parser.add_argument("--img-size", type=terminal.size, metavar="N|HxW", help="look at the images at another size")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--compare", action="store_true", help="all methods that are evidence, side by side")
    what.add_argument("--model", action="store_true", help="statistics of all layers and heads, on IMAGES or on the run's data")
    parser.add_argument(
        "--steps", type=int, default=20, metavar="N", help="steps of insertion and deletion; 0 for no scores [20]"
    )
    parser.add_argument("--grid", action="store_true", help="draw the patches")
    parser.add_argument("--arrays", action="store_true", help="also write the maps as .npy, (maps, images, rows, columns)")
    parser.add_argument("--svg", action="store_true", help="with --model: also write the picture as SVG")
    parser.add_argument("--limit", type=terminal.count, default=64, metavar="N", help="with --model: images at most [64]")
    parser.add_argument("--out", default="explained", metavar="FOLDER", help="where the pictures go [explained]")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    args = terminal.parse(parser, terminal.with_negative_numbers(words, "--layers", "--query"))
    if not args.images and not args.model:
        raise ValueError("there is no image to explain; name one, or add --model for the model as a whole")
    if args.steps < (1 if args.compare else 0):
        raise ValueError(f"--steps {args.steps} must be at least {1 if args.compare else 0}")
    refuse_without_effect(args, parser)

    from vitrail import weights
    from vitrail.deploy.predict import find_images
    from vitrail.explain.inputs import unwrapped
    from vitrail.explain.sheets import Ask
    from vitrail.models.device import pick_device
    from vitrail.weights.load import is_name

    if is_name(args.run):
        raise ValueError(f'"{args.run}" is a shape with random weights; give a run or a checkpoint')
    at_pixel = isinstance(args.query, tuple)
    ask = Ask(
        method=args.method,
        layers=args.layers,
        heads=args.heads,
        query=args.query if at_pixel else "cls",
        target=None if at_pixel or args.query == "cls" else args.query,
        discard_ratio=args.discard_ratio,
        hold_norms=args.hold_norms,
        img_size=args.img_size,
        steps=args.steps,
        grid=args.grid,
    )
    model = weights.load(args.run, revision=args.revision).to(pick_device(args.device)).eval()
    unwrapped(model)  # another family is refused before anything is read
    say_receipt(model, args.run)
    images = list(find_images(args.images))
    folder = Path(args.out)
    if args.model:
        return _explain_model(args, model, images, folder)
    return _explain_images(args, model, images, folder, ask)


def refuse_without_effect(args: argparse.Namespace, parser: terminal.Parser) -> None:
    """Raises ValueError for an option of `explain` that changes nothing beside the others."""
    of_one, of_model = ["method", "layers", "heads", "discard_ratio"], ["svg", "limit"]
    if args.compare:
        says, idle = "with --compare; leave it out", of_one + of_model
    elif args.model:
        says, idle = "with --model; leave it out", [*of_one, "hold_norms", "query", "steps", "grid", "arrays"]
    else:
        says, idle = "without --model; add that, or leave it out", of_model
    for name in idle:
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} has no effect {says}")
    if args.method in ("pca", "similarity") and args.steps != parser.get_default("steps"):
        raise ValueError(f"--steps has no effect with --method {args.method}, which has no scores; leave it out")
    if args.compare and isinstance(args.query, tuple):
        x, y = args.query
        raise ValueError(f"--query {x},{y} asks about a patch, and --compare about a class; leave it out, or name a class")


def _explain_images(args: argparse.Namespace, model: Any, images: list[Path], folder: Path, ask: Any) -> int:
    """A sheet for each image, or with `pca`, whose components are those of all, for all of them."""
    from vitrail.data.listing import mark_output
    from vitrail.explain import draw
    from vitrail.explain.sheets import explain, side_by_side, unique_names

    good = readable(images, model)
    together = ask.method == "pca" and bool(good)  # its components are those of all images
    named = [("pca", good)] if together else [(name, [path]) for name, path in zip(unique_names(good), good, strict=True)]
    rows = []
    for name, paths in named:
        if args.compare:
            made, found = side_by_side(model, paths, ask)
            folder.mkdir(parents=True, exist_ok=True)
            curves = [found.save(folder / f"{name}-curves.png")]
        else:
            made, curves = explain(model, paths, ask), []
        folder.mkdir(parents=True, exist_ok=True)
        method = "compare" if args.compare else made.maps[0].method
        path = draw.save(made.figure, folder / (f"{name}.png" if together else f"{name}-{method}.png"))
        if args.arrays:
            made.save_arrays(path.with_suffix(".npy"))
        mark_output(folder, [path, path.with_suffix(".npy"), *curves], command="explain")
        rows += [row | {"file": str(path)} | ({"curves": str(*curves)} if curves else {}) for row in made.rows]
        if not args.json:
            terminal.print_explained(made.rows, files=[path, *curves], verdict=made.verdict)
    if args.json:
        terminal.print_json(rows)
    return say_unread(len(images) - len(good), len(images))


def readable(images: list[Path], model: Any) -> list[Path]:
    """The images that can be read; of each other one it is said why not."""
    from vitrail.data.decode import BadImage, eval_view

    good = []
    for path in images:
        try:
            eval_view(path, model.preprocessing)
            good.append(path)
        except BadImage as error:
            terminal.report(f"{path}: {error}")
    return good


def _explain_model(args: argparse.Namespace, model: Any, images: list[Path], folder: Path) -> int:
    """Statistics of all layers and heads."""
    from vitrail.data.augment import normalise
    from vitrail.data.listing import mark_output
    from vitrail.explain import head_statistics, plots

    bad, tried = 0, len(images[: args.limit])
    if images:
        seen: Any = readable(images[: args.limit], model)
        if not seen:
            return say_unread(tried, tried)
        bad, said = tried - len(seen), f"{len(seen)} image{'s' * (len(seen) > 1)}"
    elif args.img_size is not None:
        raise ValueError("--img-size is for IMAGES that are named; name some, or leave it out")
    else:
        import torch

        classes = bool(model.config.num_classes)
        cfg, source = open_data(args.run, None, way_out="name images to look at", classes=classes)
        which = next((name for name in ("test", "val", "train") if name in source.splits), "train")
        split = source.load(which, preprocessing=model.preprocessing, cfg=cfg.data)  # type: ignore[arg-type]
        chosen = torch.linspace(0, len(split) - 1, min(args.limit, len(split))).round().long()
        raw, lost = split.read(chosen)
        for one in lost:
            terminal.report(f"{one.path}: {one.reason}")
        seen, bad, tried = normalise(raw.images, model.preprocessing), len(lost), len(chosen)
        said = f"{len(seen)} {which} images of {source.name}"
    options = {"img_size": args.img_size} if images and args.img_size is not None else {}
    found = head_statistics(model, seen, **options)
    folder.mkdir(parents=True, exist_ok=True)
    files = [plots.save(plots.overview(found), folder / f"model.{kind}") for kind in (["png", "svg"] if args.svg else ["png"])]
    mark_output(folder, files, command="explain")
    early_and_late = found.early_and_late().sentences if model.config.depth > 1 else ()
    if args.json:
        terminal.print_json(
            {
                "images": said,
                "layers": found.table(),
                "early_and_late": list(early_and_late),
                "notes": list(found.notes),
                "files": [str(file) for file in files],
            }
        )
    else:
        terminal.print_statistics(found.table(), early_and_late, found.notes, title=said, files=files)
    return say_unread(bad, tried)


def models(words: list[str]) -> int:
    """`vitrail models`."""
    parser = terminal.make_parser("models", "The sizes there are, each with the patches in common use.", MEMORY_HELP)
    parser.add_argument("--img-size", default="224", metavar="N|HxW", help="image side in pixels [224]")
    parser.add_argument("--in-channels", type=int, default=3, metavar="N", help="channels of the images [3]")
    parser.add_argument("--num-classes", type=int, default=1000, metavar="N", help="outputs of the head [1000]")
    parser.add_argument(
        "--batch-size", type=terminal.count, default=1, metavar="N", help="images that activations are counted for [1]"
    )
    parser.add_argument("--pretrained", action="store_true", help="instead, the checkpoints that people use")
    parser.add_argument("--json", action="store_true", help="with --pretrained: the same as JSON")
    args = terminal.parse(parser, words)
    if args.pretrained:
        for name in ("img_size", "in_channels", "num_classes", "batch_size"):
            if getattr(args, name) != parser.get_default(name):
                raise ValueError(f"--{name.replace('_', '-')} is for the table of sizes; leave it or --pretrained out")

        from vitrail.weights import pretrained

        rows = pretrained.rows()
        if args.json:
            terminal.print_json([{**dataclasses.asdict(row), "shape": row.shape._asdict()} for row in rows])
        else:
            terminal.print_pretrained(rows)
        return OK
    if args.json:
        raise ValueError("--json is for the table of checkpoints; add --pretrained")

    from vitrail.config import PATCHES, SIZES
    from vitrail.models.describe import describe
    from vitrail.train import settings

    table = terminal.make_table(
        "name", "width", "depth", "heads", "tokens", "parameters", "GFLOPs", "weights", "inference", "training", "in bf16"
    )
    shape = {"img_size": args.img_size, "in_channels": args.in_channels, "num_classes": args.num_classes}
    for name in (f"{size}/{patch}" for size in SIZES for patch in PATCHES):
        vit = settings.build([{"model": {"name": name, **shape}}]).model.shape()
        cost = describe(vit, batch_size=args.batch_size)
        counts = (f"{number:,}" for number in (vit.embed_dim, vit.depth, vit.num_heads, cost.tokens, cost.parameters))
        memory = (cost.weights_bytes, cost.inference_bytes, cost.training_bytes, cost.training_bytes_bf16)
        table.add_row(name, *counts, f"{cost.flops / 1e9:,.2f}", *map(terminal.in_bytes, memory))
    terminal.make_console().print(table)
    return OK


def show(words: list[str]) -> int:
    """`vitrail show NAME`."""
    from vitrail.train import settings

    usage = "NAME|RUN|WEIGHTS [--img-size 384] [--model.FIELD VALUE]… [--groups] [--verbose]"
    parser = terminal.make_settings_parser("show", SHOW_HELP, usage=usage)
    parser.add_argument("name", metavar="NAME|RUN|WEIGHTS", help='such as "B/16"; a run; a Hub id, a file or a folder')
    for field, metavar in (("img_size", "N|HxW"), ("in_channels", "N"), ("num_classes", "N")):
        option = "--" + field.replace("_", "-")
        parser.add_argument(option, dest=field, type=str, metavar=metavar, help=f"short for --model.{field}")
    parser.add_argument("--batch-size", type=terminal.count, metavar="N", help="images that activations are counted for [1]")
    parser.add_argument("--groups", action="store_true", help="also print what the optimizer does to each parameter")
    parser.add_argument("--revision", type=str, metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--verbose", action="store_true", help="a line for every tensor of the receipt")
    parser.add_argument("--no-strict", action="store_true", help="load what fits, even if much is missing or has no place")
    settings.add_settings(parser, sections=("model", "optim"))
    parsed = terminal.parse_settings(parser, words)
    short = {field: parsed[field] for field in settings.OF_THE_DATA if parsed.get(field) is not None}

    from vitrail import weights
    from vitrail.models import meta_model
    from vitrail.models.describe import Description, describe_model
    from vitrail.settings.families import name_of
    from vitrail.weights.load import named_family

    config, asked = Path(parsed["name"], "config.yaml"), [{"model": short}, settings.layer_of(parsed)]
    title = None
    below: Mapping[str, Any] = {"model": parsed["name"]}
    if config.is_file():
        below = settings.read_config(config)
    elif named_family(parsed["name"]) is None:
        strict, fields = not parsed.get("no_strict"), settings.model_fields(*asked)
        model = weights.load(parsed["name"], revision=parsed.get("revision"), strict=strict, **fields)
        assert isinstance(model.receipt, weights.Receipt)
        print(model.receipt.verbose() if parsed.get("verbose") else model.receipt, end="\n\n")
        shape = {**dataclasses.asdict(model.config), "name": name_of(model.config)}
        below, asked, title = {"model": shape}, [{"optim": asked[1].get("optim", {})}], parsed["name"]
    cfg = settings.build([below, *asked])
    batch_size = parsed.get("batch_size") or 1
    cost = describe_model(cfg.model.shape(), batch_size=batch_size)
    if isinstance(cost, Description):
        terminal.print_model(cfg.model, cost, batch_size=batch_size, title=title)
    elif "batch_size" in parsed:
        raise ValueError(f"--batch-size is for memory, which is not counted of {cfg.model.name}; leave it out")
    else:
        terminal.print_cost(cfg.model, cost, title=title)
    if parsed.get("groups"):
        from vitrail.train.optim import group_table

        terminal.print_groups(group_table(meta_model(cfg.model), cfg.optim))
    return OK


def convert(words: list[str]) -> int:
    """`vitrail convert SRC DST --to TARGET`."""
    from vitrail.train import settings

    usage = "SRC DST --to timm|hf|torchvision|npz [--overwrite] [--model.FIELD VALUE]… [--verbose]"
    parser = terminal.make_settings_parser("convert", CONVERT_HELP, usage=usage)
    parser.add_argument("source", metavar="SRC", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("destination", metavar="DST", help="where it goes: a folder for timm and hf, else a file")
    parser.add_argument("--to", type=str, required=True, metavar="TARGET", help="timm, hf, torchvision or npz")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
    parser.add_argument("--revision", type=str, metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--verbose", action="store_true", help="a line for every tensor of the receipt")
    parser.add_argument("--no-strict", action="store_true", help="load what fits, even if much is missing or has no place")
    settings.add_settings(parser, sections=("model",))
    parsed = terminal.parse_settings(parser, words)

    from vitrail import weights
    from vitrail.weights.convert import place, planned, write

    overwrite, fields = bool(parsed.get("overwrite")), settings.model_fields(settings.layer_of(parsed))
    path = place(parsed["to"], parsed["destination"], overwrite=overwrite)
    strict = not parsed.get("no_strict")
    model = weights.load(parsed["source"], revision=parsed.get("revision"), strict=strict, **fields)
    assert isinstance(model.receipt, weights.Receipt)
    print(model.receipt.verbose() if parsed.get("verbose") else model.receipt, end="\n\n")
    plan = planned(model, parsed["to"])
    write(plan, path, overwrite=overwrite)
    for note in plan.notes:
        terminal.say(f"Note: {note}.")
    terminal.say(f"Written: {path}. It opens with")
    terminal.say(f"  {plan.opens.replace('PATH', str(path))}")
    return OK


def push(words: list[str]) -> int:
    """`vitrail push RUN OWNER/NAME`."""
    parser = terminal.make_parser(
        "push", "Uploads a run's model to the Hugging Face Hub: weights, settings, scores and a model card."
    )
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` or `vitrail convert --to timm` wrote")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository, which is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it a private one")
    parser.add_argument("--revision", metavar="R", help="the branch [main]")
    args = terminal.parse(parser, words)

    from vitrail.weights import push_to_hub

    terminal.say(push_to_hub(args.run, args.repo, private=args.private, revision=args.revision))
    return OK


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "check": check,
    "train": train,
    "pretrain": pretrain,
    "resume": resume,
    "evaluate": evaluate,
    "predict": predict,
    "explain": explain,
    "probe": probe,
    "models": models,
    "show": show,
    "convert": convert,
    "push": push,
}
