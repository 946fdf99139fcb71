"""`vitrail bench`: speed of this machine, ours beside the peers'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitrail import terminal

if TYPE_CHECKING:
    from vitrail.bench.run import Phase, Report

USAGE = "bench [MODEL]"
SUMMARY = "speed of this machine: training and prediction, beside other libraries"

NOTES = """Contenders take turns, each in a process of its own, with the same random weights. "x timm" is the speed
beside timm in fp32 within the same rounds; "ceiling" is the share of the rate of plain matrix products in the
same number type; "Δ logits" is the greatest difference from our logits in fp32, relative to the greatest of
those. The peers that are installed take part: timm, torchvision, openvino, and onnxruntime with onnx and
onnxscript."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser("bench", "Speed of training and prediction on this machine, beside other libraries.", NOTES)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="model name [Ti/16 on a CPU, B/16 on a GPU]")
    parser.add_argument("--img-size", metavar="N|HxW", help="image side in pixels [224]")
    parser.add_argument("--batch-size", type=terminal.count, metavar="N", help="images a batch [16 on a CPU, 256 on a GPU]")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    parser.add_argument("--minutes", type=float, default=2.0, metavar="X", help="time for all of it [2]")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        help="bf16 also measures bf16 where it is slow, fp32 leaves it out [auto]",
    )
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    args = terminal.parse(parser, words)

    from vitrail.bench.run import bench
    from vitrail.settings import layers

    typed = {} if args.img_size is None else {"img_size": args.img_size}
    report = bench(
        args.model,
        img_size=layers.model_fields({"model": typed}).get("img_size"),
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        minutes=args.minutes,
        say=terminal.report,
    )
    if args.json:
        terminal.print_json(report.to_dict())
    else:
        print_report(report, minutes=args.minutes)
    return terminal.OK


def print_report(report: Report, *, minutes: float) -> None:
    """Print the machine, a table for each phase, what was left out, and the time it took."""
    noted, side = report.machine, " x ".join(map(str, report.img_size))
    threads = terminal.counted(int(noted["threads"]), "thread")
    terminal.say(f"{noted['cpu']}, {threads}{', ' + str(noted['gpu']) if 'gpu' in noted else ''}; torch {noted['torch']}")
    terminal.say(f"{report.model}, {side} px, batch {report.batch_size}, {report.gflops:,.2f} GFLOPs an image")
    for title, phase in (("training", report.training), ("prediction", report.prediction)):
        print_phase(title, phase)
    left_out = {**report.training.left_out, **report.prediction.left_out}
    if left_out:
        terminal.say()
    for reason in dict.fromkeys(left_out.values()):
        names = dict.fromkeys(name.rpartition(" ")[0] for name, why in left_out.items() if why == reason)
        terminal.say(f"not measured: {', '.join(names)}: {reason}")
    over = f": starting and three rounds take longer than {minutes:g} min" if report.seconds > 66 * minutes else ""
    terminal.say()
    terminal.say(f"`vitrail train` takes {report.train_precision} here.")
    terminal.say(f"{report.training.rounds} and {report.prediction.rounds} rounds in {report.seconds:.0f} s{over}.")


def print_phase(title: str, phase: Phase) -> None:
    """Print the table of one phase, and the ceilings that its shares refer to."""
    table = terminal.make_table(title, "type", "images/s", "min to max", "x timm", "ceiling", "Δ logits", words=("type",))
    for row in phase.results:
        speed = row.images_per_s
        table.add_row(
            row.contender,
            row.precision,
            in_images(speed["median"]),
            f"{in_images(speed['min'])} to {in_images(speed['max'])}",
            "-" if row.ratio is None else f"{row.ratio['median']:.2f}",
            "-" if row.share_of_ceiling is None else f"{100 * row.share_of_ceiling:.0f} %",
            in_words(row.logits_difference),
        )
    terminal.say()
    terminal.make_console().print(table)
    for one in phase.ceilings:
        terminal.say(f"ceiling: {one.products}, {one.precision}: {one.gflop_per_s['median']:,.0f} GFLOP/s")


def in_images(speed: float) -> str:
    """Format images a second."""
    return f"{speed:,.0f}" if speed >= 999.5 else f"{speed:.1f}"


def in_words(difference: float | None) -> str:
    """Format a relative difference of logits."""
    return "-" if difference is None else f"{difference:.0e}" if difference else "0"
