"""What the command line takes and prints: words to values, values to lines and tables."""

from __future__ import annotations

import argparse
import csv
import difflib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vitrail.config import ModelConfig, pair
from vitrail.settings.families import family_of
from vitrail.text import json_escaped, one_line, printable

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console
    from rich.table import Table

    from vitrail.config import ModelSection
    from vitrail.deploy.predict import Prediction
    from vitrail.evaluate.embedding import EmbeddingScores
    from vitrail.evaluate.few_shot import FewShot, Mean
    from vitrail.evaluate.metrics import Accuracy, Evaluation
    from vitrail.evaluate.multilabel import MultiLabelEvaluation
    from vitrail.models.describe import Cost, Description, Peak
    from vitrail.train.ladder import Ladder
    from vitrail.train.optim import Row
    from vitrail.weights import pretrained

MANY_CLASSES = 40


# --------------------------------------------------------------------------------------------------------------------
# Words to values

SHORT = {"--model": "--model.name", "--minutes": "--train.minutes", "--weights": "--model.weights"}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with room for long options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(shutil.get_terminal_size((110, 24)).columns, 110))


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are raised for `main` to say."""

    def error(self, message: str) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"{message}; see {self.prog} --help")


def make_parser(command: str, description: str, epilog: str = "") -> Parser:
    """The parser of a command."""
    return Parser(prog=f"vitrail {command}", description=description, epilog=epilog, formatter_class=Help, allow_abbrev=False)


def make_settings_parser(command: str, description: str, *, usage: str) -> ArgumentParser:
    """A parser for jsonargparse's typed options. Parse with `parse_settings`."""
    from jsonargparse import ArgumentParser

    prog = f"vitrail {command}"
    return ArgumentParser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        formatter_class=Help,
        exit_on_error=False,
        allow_abbrev=False,
    )


def count(text: str | int) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with commas between."""
    try:
        return tuple(count(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}": give whole numbers of at least 1, as in 1,5,10') from None


def method(text: str) -> str:
    """A method's name, with - or _."""
    return text.replace("-", "_")


def layers(text: str) -> tuple[int, ...] | str:
    """Layers with commas between, or "all"."""
    if text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}": give layers as in 0,5,-1, or all') from None


def with_negative_numbers(words: Sequence[str], *options: str) -> list[str]:
    """The words, -2,-1 behind one of the options tied to it: argparse takes that for an option of its own."""
    tied: list[str] = []
    for word in words:
        if tied and tied[-1] in options and re.match(r"-\d", word):
            tied[-1] = f"{tied[-1]}={word}"
        else:
            tied.append(word)
    return tied


def heads(text: str) -> tuple[int | str, ...] | str:
    """Heads, or what is made of all of them, with commas between; or "all"."""
    if text == "all":
        return text
    parts = text.split(",")
    if not all(part in ("mean", "max", "min") or part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f'"{text}": give heads as in 0,3, or mean, max, min, or all')
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def query(text: str) -> str | tuple[int, int]:
    """A pixel, as x,y; or any word."""
    numbers = re.fullmatch(r"(-?\d+),(-?\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else text


def size(text: str) -> int | tuple[int, int]:
    """A side in pixels, or height x width."""
    numbers = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not numbers or 0 in map(int, filter(None, numbers.groups())):
        raise argparse.ArgumentTypeError(f'"{text}": give a side as in 448, or height and width as in 224x448')
    return int(numbers[1]) if numbers[2] is None else (int(numbers[1]), int(numbers[2]))


def add_device(parser: Parser, *, batch_size: int) -> None:
    """The options of a command that runs a model."""
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    parser.add_argument("--batch-size", type=count, default=batch_size, metavar="N", help=f"images a batch [{batch_size}]")


def parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    """What was typed, the options anywhere among the rest. Raises ValueError in one line, naming the nearest option."""
    for option in _options(words):
        if option not in parser._option_string_actions:
            close = difflib.get_close_matches(option, parser._option_string_actions, n=1)
            raise ValueError(_no_option(option, parser.prog, close))
    return parser.parse_intermixed_args(words)


def parse_settings(parser: ArgumentParser, words: list[str]) -> Namespace:
    """What was typed, and nothing of the defaults."""
    from vitrail.train import settings

    words = list(chain.from_iterable(word.split("=", 1) if word.startswith("--") else [word] for word in words))
    words = [SHORT.get(word, word) for word in words]
    for position, word in enumerate(words[1:], start=1):
        if words[position - 1] in ("--model.img_size", "--model.patch_size"):
            words[position] = settings.sides(word)
    known = parser._option_string_actions
    for option in _options(words):
        section, dot, _ = option.rpartition(".")
        if option in known or (section in known and option[2:] in settings.key_types()):  # --augment.rand_augment.n
            continue
        near = difflib.get_close_matches(option, [*SHORT, *known], n=1, cutoff=0.8)
        meant = [name for name in (f"--{settings.nearest_key(option[2:])}",) if name in known]
        raise ValueError(_no_option(option, parser.prog, meant or near if dot else near or meant))
    try:
        return parser.parse_args(words, defaults=False)
    except argparse.ArgumentError as error:
        raise ValueError(settings.explain(error)) from error


def _options(words: Iterable[str]) -> Iterator[str]:
    """The options among the words, without what follows a "="."""
    return (word.partition("=")[0] for word in takewhile(lambda word: word != "--", words) if word.startswith("--"))


def _no_option(option: str, prog: str, close: list[str]) -> str:
    return f"{option} is not an option of {prog}; " + (f"did you mean {close[0]}?" if close else f"see {prog} --help")


def lines(stream: Iterable[str]) -> Iterator[str]:
    """The lines that hold something."""
    return (line.rstrip("\r\n") for line in stream if line.strip())


# --------------------------------------------------------------------------------------------------------------------
# Values to lines


def warning_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning as a user sees it: ours in the words of a mistake, others with their kind."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"vitrail: {kind}{one_line(message)}\n"


def say(text: object = "") -> None:
    """Print one line, whatever names stand in it."""
    print(printable(text))


def report(text: object, *, process: str = "") -> None:
    """Print one line to stderr: a fault, or what was assumed."""
    print(f"vitrail{process}: {printable(text)}", file=sys.stderr)


def make_console() -> Console:
    """Colours and the terminal's width on a terminal; plain text of any width in a pipe."""
    from vitrail.console import PlainConsole

    terminal = sys.stdout.isatty()
    return PlainConsole(
        color_system="auto" if terminal else None,
        width=None if terminal else 1000,
    )


def make_table(*columns: str, words: Sequence[str] = ()) -> Table:
    """An empty table of numbers, but for the first column and those named in `words`."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if not position or column in words else "right", overflow="fold")
    return table


def print_json(value: Any) -> None:
    """Any value as indented JSON. Raises ValueError for numbers that are not finite, which JSON does not have."""
    print(json_escaped(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))


def percent(share: float) -> str:
    """A share, as in 87.3 %."""
    return f"{100 * share:.1f} %"


def in_bytes(count: float) -> str:
    """A number of bytes, as in 86.6 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def listed(names: Sequence[str]) -> str:
    """The first names of many."""
    return ", ".join(names[:3]) + (f" … ({len(names)})" if len(names) > 3 else "")


def print_what_is_next(folder: Path, commands: Sequence[str]) -> None:
    """Where a run is, and the commands that use it, with {run} for its folder."""
    say()
    say(f"The run is in {folder}. What to run next:")
    for command in commands:
        say(f"  {command.replace('{run}', shlex.quote(str(folder)))}")


def print_evaluation(result: Evaluation, *, title: str) -> None:
    """Accuracy as a whole and of each class."""
    console = make_console()
    console.print(title, style="bold", soft_wrap=True)
    console.print()
    overall = make_table("", "accuracy", "95 % interval")
    overall.add_row("top-1", percent(result.top1), _interval(result.top1_interval))
    if len(result.classes) > 5:
        overall.add_row("top-5", percent(result.top5), _interval(result.top5_interval))
    console.print(overall)
    console.print()
    shown = [each for each in result.per_class if each.count]
    if len(shown) > MANY_CLASSES:
        console.print(f"The {MANY_CLASSES} classes of lowest accuracy; evaluation.json has all {len(result.classes)}:")
        shown = sorted(shown, key=lambda each: each.accuracy)[:MANY_CLASSES]
    classes = make_table("class", "images", "accuracy", "95 % interval")
    for each in shown:
        classes.add_row(each.name, f"{each.count:,}", percent(each.accuracy), _interval(each.interval))
    console.print(classes)
    console.print()


def print_probe(
    ladder: Ladder, few: Sequence[FewShot], *, name: str, images: Mapping[str, int], classes: Sequence[str]
) -> None:
    """The rungs, what a few images a class are enough for, and what can be expected of fine-tuning."""
    console, test = make_console(), ladder.probe.test
    split = "test" if test is not None else "val" if "val" in images else None
    where = f"scored on {images[split]:,} {split} images" if split else "scored on training images, held out in turn"
    teachers = [side for side in ("train", "val") if side in images and (side == "train" or test is not None)]
    learned, each_class = " + ".join(f"{images[side]:,} {side}" for side in teachers), sum(images[side] for side in teachers)
    console.print(f"{name}: {len(classes):,} classes; learned from {learned}; {where}", style="bold", soft_wrap=True)
    console.print()
    table = make_table("", "images a class", "accuracy", "95 % interval", "of", words=("of",))

    def row(name: str, each: str, score: Accuracy | Mean, of: str) -> None:
        table.add_row(name, each, percent(score.value), _interval(score.interval), of)

    scored = (("k-NN", ladder.knn, ladder.knn_test), ("linear probe", ladder.probe.val, test))
    for rung, val, on_test in scored:
        score = val if on_test is None else on_test
        if score.count:
            row(rung, f"{each_class / len(classes):,.0f}", score, f"{score.count:,} images")
    for each in few:
        draws = _counted(len(each.knn.values), "draw")
        row("k-NN", str(each.shots), each.knn, f"the mean of {draws}")
        row("linear probe", str(each.shots), each.probe, f"the mean of {draws}")
    console.print(table)
    console.print()
    for each in few:
        if each.short:
            names = listed([classes[k] for k in each.short])
            console.print(f"Fewer than {each.shots} images, of which all were taken: {names}.", soft_wrap=True)
    console.print(f"{ladder.advice.why[0].upper()}{ladder.advice.why[1:]}.", soft_wrap=True)


def print_embedding(result: EmbeddingScores, *, title: str) -> None:
    """k-NN accuracy where images have classes, and effective rank."""
    console = make_console()
    console.print(title, style="bold", soft_wrap=True)
    console.print()
    table = make_table("embedding", "score", "95 % interval")
    if result.knn is not None:
        table.add_row("k-NN accuracy", percent(result.knn.value), _interval(result.knn.interval))
    low, high = result.effective_rank_interval
    table.add_row("effective rank, dimensions", f"{result.effective_rank:.1f}", f"{low:.1f} to {high:.1f}")
    console.print(table)
    console.print()


def print_labels(result: MultiLabelEvaluation, *, title: str) -> None:
    """Mean average precision, F1, and the average precision of each label."""
    console = make_console()
    console.print(title, style="bold", soft_wrap=True)
    console.print()
    overall = make_table("", "score", "95 % interval")
    overall.add_row("mean average precision", percent(result.mean_ap), _interval(result.mean_ap_interval))
    overall.add_row("F1 of all labels from 50 % on", percent(result.f1), _interval(result.f1_interval))
    console.print(overall)
    console.print()
    shown = [each for each in result.per_class if each.count]
    if len(shown) > MANY_CLASSES:
        console.print(f"The {MANY_CLASSES} labels of lowest precision; evaluation.json has all {len(result.classes)}:")
        shown = sorted(shown, key=lambda each: each.average_precision)[:MANY_CLASSES]
    labels = make_table("label", "images", "average precision", "95 % interval")
    for each in shown:
        labels.add_row(each.name, f"{each.count:,}", percent(each.average_precision), _interval(each.interval))
    console.print(labels)
    console.print()


def print_model(cfg: ModelSection, cost: Description, *, batch_size: int, title: str | None = None) -> None:
    """A model's shape and what it costs."""
    assert isinstance(cfg, ModelConfig)
    (height, width), (down, across) = pair(cfg.img_size), pair(cfg.patch_size)
    patches = height // down * (width // across)
    hidden = round(cfg.embed_dim * cfg.mlp_ratio)
    memory = f"of activations for {_counted(batch_size, 'image')}"
    classes = _counted(cfg.num_classes, "class", "es") if cfg.num_classes else "no head"
    lines = {
        "images": f"{height} x {width} px, {_counted(cfg.in_channels, 'channel')}; {classes}",
        "shape": f"width {cfg.embed_dim:,}, {_counted(cfg.depth, 'block')}, {_counted(cfg.num_heads, 'head')}, MLP {hidden:,}",
        "tokens": f"{cost.tokens:,} = {cost.tokens - patches} + {_counted(patches, 'patch', 'es')} of {down} x {across} px",
        "parameters": f"{cost.parameters:,}",
        "weights": f"{in_bytes(cost.weights_bytes)} in fp32",
        "FLOPs": _flops(cost.flops),
        "inference": f"{in_bytes(cost.inference_bytes)} {memory} in fp32",
        "training": f"{in_bytes(cost.training_bytes)} {memory} in fp32, {in_bytes(cost.training_bytes_bf16)} in bf16",
        "in all": f"{_peak(cost.peak)}, with weights, gradients and AdamW",
        "recomputed": f"{_peak(cost.checkpointing_peak)} in all, with train.checkpointing",
    }
    _print_lines(title or cfg.name, lines)


def print_cost(cfg: ModelSection, cost: Cost, *, title: str | None = None) -> None:
    """What can be counted of a model of any family."""
    (height, width), words = pair(cfg.img_size), family_of(cfg.name).words(cfg.shape())
    classes = _counted(cfg.num_classes, "class", "es") if cfg.num_classes else "no head"
    lines = {
        "images": f"{height} x {width} px, {_counted(cfg.in_channels, 'channel')}; {classes}",
        "shape": words.shape,
        "parameters": f"{cost.parameters:,}",
        "weights": f"{in_bytes(cost.weights_bytes)} in fp32",
        "FLOPs": _flops(cost.flops),
        "memory": "of activations is not counted for this family",
    }
    _print_lines(title or cfg.name, lines)


def _print_lines(title: str, lines: Mapping[str, str]) -> None:
    say(title)
    for name, text in lines.items():
        say(f"  {name:10}  {text}")


def _peak(peak: Peak) -> str:
    return f"{in_bytes(peak.fp32)} in fp32, {in_bytes(peak.bf16)} in bf16"


def _flops(count: int) -> str:
    return f"{f'{count / 1e9:,.2f} G' if count >= 1e9 else f'{count / 1e6:.2f} M'} in the forward pass of 1 image"


def _counted(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def print_pretrained(rows: Sequence[pretrained.Row]) -> None:
    """One line a checkpoint, two where the terminal is narrow: an id is there to be copied, so it is never cut."""
    console = make_console()
    ids = ["id", *(row.id for row in rows)]
    cells = [("size", "px", "data", "top-1", "source", "licence"), *map(_of_a_checkpoint, rows)]
    room, *widths = (max(map(len, column)) for column in (ids, *zip(*cells, strict=True)))
    one_line = console.width >= room + sum(widths) + 2 * len(widths)
    for name, texts in zip(ids, cells, strict=True):
        line = "  ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=True)).rstrip()
        console.print(f"{name:{room}}" if one_line else name, style="bold", end="  " if one_line else "\n  ", soft_wrap=True)
        console.print(line, soft_wrap=True)
    console.print()
    console.print("IN is ImageNet. top-1 is per cent of the validation images of ImageNet-1k, as reported in")
    for source in dict.fromkeys(row.source for row in rows):
        if source is not None:
            console.print(f"  {source.name:9}  {source.where}", soft_wrap=True)
    console.print("The licence is the one that timm or the model's page on the Hub names; read it there before you rely on it.")


def _of_a_checkpoint(row: pretrained.Row) -> tuple[str, ...]:
    data = ", ".join(row.data).replace("ImageNet", "IN")
    top1 = "-" if row.top1 is None else f"{row.top1:.1f}"
    source = "-" if row.source is None else row.source.name
    if row.source is not None and row.source.how != "own head":
        source += f", {row.source.how}"
    return row.size, str(row.img_size), data, top1, source, row.licence


def print_groups(rows: Sequence[Row]) -> None:
    """What the optimizer does to each parameter."""
    table = make_table("parameter", "shape", "optimizer", "rate factor", "weight decay", words=("shape", "optimizer"))
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.name, shape, row.optimizer, f"{row.lr_factor:.4g}", f"{row.weight_decay:g}")
    say()
    make_console().print(table)


def _interval(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def print_explained(rows: Sequence[Mapping[str, Any]], *, files: Sequence[Path], verdict: str = "") -> None:
    """The maps of one sheet with their scores, and where the pictures are."""
    console = make_console()
    numbers = ("insertion", "deletion", "random map", "shuffled weights", "correlation")
    table = make_table("image", "class", "map", *numbers, words=("class", "map"))
    for row in rows:
        has = row["insertion"] is not None
        called = row["class"] or "-"
        if row.get("probability") is not None:
            called += f" ({percent(row['probability'])})"
        table.add_row(
            Path(row["image"]).name,
            called,
            f"{row['method'].replace('_', ' ')}: {row['label']}"
            if row["method"] in ("attention", "similarity")
            else row["method"],
            f"{row['insertion']:.3f}" if has else "-",
            f"{row['deletion']:.3f}" if has else "-",
            f"{row['random_insertion']:.3f}, {row['random_deletion']:.3f}" if has else "-",
            f"{row['shuffled_insertion']:.3f}, {row['shuffled_deletion']:.3f}" if has else "-",
            "-" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}",
        )
    console.print(table)
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault(row["note"], []).append(row["method"].replace("_", " "))
    for note, methods in notes.items():
        console.print(f"{', '.join(dict.fromkeys(methods))}: {note}")
    if verdict:
        console.print(verdict)
    for file in files:
        console.print(f"-> {file}", soft_wrap=True)
    console.print()


def print_statistics(
    rows: Sequence[Mapping[str, Any]],
    sentences: Sequence[str],
    notes: Sequence[str],
    *,
    title: str,
    files: Sequence[Path],
) -> None:
    """What each layer's heads do, what to conclude of early and late layers, and where the picture is."""
    console = make_console()
    console.print(f"On {title}. Means over heads; in brackets the least and the greatest head.")
    console.print()
    table = make_table("layer", "looks, px", "patches", "entropy, bits", "to patches", "alike", "norm", "greatest", "outliers")
    for row in rows:
        alike = row["redundancy"]
        table.add_row(
            f"{row['layer']}",
            f"{row['distance_px']:.1f} ({row['distance_px_min']:.1f} to {row['distance_px_max']:.1f})",
            f"{row['distance_patches']:.2f}",
            f"{row['entropy_bits']:.2f} ({row['entropy_bits_min']:.2f} to {row['entropy_bits_max']:.2f})",
            percent(row["cls_to_patch"]),
            "-" if alike is None else f"{alike:.2f}",
            f"{row['norm_median']:.1f}",
            f"{row['norm_max']:.1f}",
            percent(row["outlier_share"]),
        )
    console.print(table)
    for line in [*sentences, *notes]:
        console.print(f"- {line}", soft_wrap=False)
    for file in files:
        console.print(f"-> {file}", soft_wrap=True)


def print_predictions(done: Sequence[Prediction]) -> None:
    """One row an image."""
    from vitrail.deploy.predict import NOT_FINITE

    many = any(len(prediction.top) > 1 for prediction in done)

    def failed(prediction: Prediction) -> str:  # the reason goes to stderr
        return "no label" if prediction.error == NOT_FINITE else "unreadable"

    if any(prediction.labels is not None for prediction in done):
        table = make_table("image", "labels", *(["most probable"] if many else []), words=("labels", "most probable"))
        for prediction in done:
            given = failed(prediction) if prediction.error is not None else _pairs(prediction.labels or ()) or "none"
            table.add_row(prediction.path, given, *([_pairs(prediction.top)] if many else []))
        make_console().print(table)
        return
    table = make_table("image", "label", "probability", *(["then"] if many else []), words=("label", "then"))
    for prediction in done:
        if prediction.error is not None or prediction.probability is None:
            table.add_row(prediction.path, failed(prediction), "")
            continue
        then = _pairs(prediction.top[1:])
        table.add_row(prediction.path, prediction.label, percent(prediction.probability), *([then] if many else []))
    make_console().print(table)


def _pairs(given: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{label} {percent(p)}" for label, p in given)


def print_csv(done: Sequence[Prediction], *, top: int) -> None:
    """path,label,probability,label_2,probability_2,…,error; an image without a label has empty fields and its error.

    Of a model for any number of labels an image, `labels` behind the path has all from 0.5 on, with ";" between.
    """
    several = any(prediction.labels is not None for prediction in done)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    quoting = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    ranks = [("label", "probability"), *((f"label_{rank}", f"probability_{rank}") for rank in range(2, top + 1))]
    shown = printable if sys.stdout.isatty() else str  # a file gets the names as they are
    writer.writerow(["path", *(["labels"] if several else []), *chain.from_iterable(ranks), "error"])
    for prediction in done:
        pairs = [(label, f"{p:.6f}") for label, p in prediction.top] or [("", "")] * top
        labels = [";".join(label for label, _ in prediction.labels or ())] if several else []
        cells = [prediction.path, *labels, *chain.from_iterable(pairs), prediction.error or ""]
        row = list(map(shown, cells))
        (quoting if any("\r" in cell for cell in row) else writer).writerow(row)  # csv quotes \n of itself, and \r not
