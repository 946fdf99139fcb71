"""`vitrail evaluate`: measure a run or a checkpoint on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitrail import terminal
from vitrail.text import listed

if TYPE_CHECKING:
    from vitrail.evaluate import Evaluation, MultiLabelEvaluation

USAGE = "evaluate RUN [DATA]"
SUMMARY = "accuracy with 95 % intervals, per class, and the confusion matrix"

MANY_CLASSES = 40


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser(
        "evaluate", "Measures a run: accuracy with 95 % intervals, each class, and what is taken for what."
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
    from vitrail.data.listing import composed, mark_output
    from vitrail.evaluate import MultiLabelEvaluation, evaluate_labels, save_evaluation
    from vitrail.evaluate import evaluate as measure
    from vitrail.evaluate.run import open_data
    from vitrail.models.device import autocast_dtype, pick_device

    device, run = pick_device(args.device), Path(args.run, "config.yaml").is_file()
    model = weights.load(args.run).to(device)
    assert model.preprocessing is not None
    cfg, source = open_data(args.run, args.data)
    if args.data:
        for note in source.notes:
            terminal.report(note)
    used = source.values_in_use(threads=cfg.data.workers)
    if used and (mismatch := used.mismatch(model.preprocessing.range)):
        terminal.report(mismatch)
    if source.classes != tuple(map(composed, model.classes)):
        theirs, ours = listed(source.classes), listed(model.classes) or "no names"
        if run or len(source.classes) != model.config.num_classes:
            says = f"{source.name} has the classes {theirs}, and the model {model.config.num_classes:,}: {ours}"
            raise ValueError(f"{says}; give data of the model's classes")
        terminal.report(f"the checkpoint calls its classes {ours}; taken in the order of {theirs}")
    if run and source.multi_label != model.multi_label:
        kinds = ("one class an image", "any number of labels an image")
        says = f"{source.name} has {kinds[source.multi_label]}, and the model was trained on {kinds[model.multi_label]}"
        raise ValueError(f"{says}; give data of its kind")
    name = args.split or next(split for split in ("test", "val", "train") if split in source.splits)
    split = source.load(name, preprocessing=model.preprocessing, cfg=cfg.data, augment=None)
    precision = "auto" if cfg.train.precision == "fp16" and device.type != "cuda" else cfg.train.precision
    result = (evaluate_labels if source.multi_label else measure)(
        model,
        split,
        preprocessing=model.preprocessing,
        classes=source.classes,
        batch_size=args.batch_size,
        device=device,
        autocast_dtype=autocast_dtype(precision, device),  # as when the training measured itself
    )

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
            print_labels(result, title=title)
        else:
            print_evaluation(result, title=title)
        terminal.say("Written: " + ", ".join(map(str, files)))
    return terminal.OK


def print_evaluation(result: Evaluation, *, title: str) -> None:
    """Accuracy as a whole and of each class."""
    console = terminal.make_console()
    console.print(title, style="bold", soft_wrap=True)
    console.print()
    overall = terminal.make_table("", "accuracy", "95 % interval")
    overall.add_row("top-1", terminal.percent(result.top1), terminal.interval(result.top1_interval))
    if len(result.classes) > 5:
        overall.add_row("top-5", terminal.percent(result.top5), terminal.interval(result.top5_interval))
    console.print(overall)
    console.print()
    shown = [each for each in result.per_class if each.count]
    if len(shown) > MANY_CLASSES:
        console.print(f"The {MANY_CLASSES} classes of lowest accuracy; evaluation.json has all {len(result.classes)}:")
        shown = sorted(shown, key=lambda each: each.accuracy)[:MANY_CLASSES]
    classes = terminal.make_table("class", "images", "accuracy", "95 % interval")
    for each in shown:
        classes.add_row(each.name, f"{each.count:,}", terminal.percent(each.accuracy), terminal.interval(each.interval))
    console.print(classes)
    console.print()


def print_labels(result: MultiLabelEvaluation, *, title: str) -> None:
    """Mean average precision, F1, and the average precision of each label."""
    console = terminal.make_console()
    console.print(title, style="bold", soft_wrap=True)
    console.print()
    overall = terminal.make_table("", "score", "95 % interval")
    overall.add_row("mean average precision", terminal.percent(result.mean_ap), terminal.interval(result.mean_ap_interval))
    overall.add_row("F1 of all labels from 50 % on", terminal.percent(result.f1), terminal.interval(result.f1_interval))
    console.print(overall)
    console.print()
    shown = [each for each in result.per_class if each.count]
    if len(shown) > MANY_CLASSES:
        console.print(f"The {MANY_CLASSES} labels of lowest precision; evaluation.json has all {len(result.classes)}:")
        shown = sorted(shown, key=lambda each: each.average_precision)[:MANY_CLASSES]
    labels = terminal.make_table("label", "images", "average precision", "95 % interval")
    for each in shown:
        labels.add_row(each.name, f"{each.count:,}", terminal.percent(each.average_precision), terminal.interval(each.interval))
    console.print(labels)
    console.print()
