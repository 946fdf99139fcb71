"""`vitrail convert`: write a checkpoint for another library, or the names file of a home-made one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail import terminal

if TYPE_CHECKING:
    from vitrail.weights.names_file import NamesFile

USAGE = "convert SRC DST --to …"
SUMMARY = "a checkpoint for timm, transformers (hf), torchvision, or as Google's .npz"

HELP = """Writes a checkpoint that another library loads strictly, with equal outputs; what it can't hold is refused.

  vitrail convert runs/first first-timm --to timm      a folder: timm.create_model("local-dir:first-timm", …)
  vitrail convert timm/vit_small_patch16_224.augreg_in21k vit.npz --to npz   a file: Google's layout
  vitrail convert weights.pth weights-hf --to hf --model.num_heads 8
  vitrail convert google/vit-base-patch16-224 vit.pth --to torchvision --model.norm_eps 1e-6

SRC is a run, a Hub id, a file or a folder of any origin. --model.FIELD sets what no tensor determines, or changes it.
A model that you wrote yourself, whose names no library has:

  vitrail convert mine.pth --suggest-names names.yaml                 guess the names; read and mend the file
  vitrail convert mine.pth mine-timm --to timm --names names.yaml
  vitrail convert mine.pth mine-timm --to timm --answers num_heads=4 mlp=gelu norm_first=true pixel_scale=unit

Every command takes names.yaml in the place of the checkpoint that it names: vitrail predict names.yaml PHOTO.jpg"""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    from vitrail.settings import layers

    usage = "SRC DST --to timm|hf|torchvision|npz [--names FILE] [--answers …] [--overwrite] [--model.FIELD VALUE]…"
    parser = terminal.make_settings_parser("convert", HELP, usage=f"{usage}\n       vitrail convert SRC --suggest-names FILE")
    parser.add_argument("source", metavar="SRC", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("destination", metavar="DST", nargs="?", help="where it goes: a folder for timm and hf, else a file")
    parser.add_argument("--to", type=str, metavar="TARGET", help="timm, hf, torchvision or npz")
    parser.add_argument("--names", type=str, metavar="FILE", help="names file of a checkpoint whose names no library has")
    parser.add_argument(
        "--suggest-names", type=str, metavar="FILE", help="guess the names, write them there, and convert nothing"
    )
    parser.add_argument("--answers", type=str, nargs="+", metavar="FIELD=VALUE", help="what no tensor tells, as the error asks")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint or a names file that is there")
    parser.add_argument("--revision", type=str, metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--verbose", action="store_true", help="a line for every tensor of the receipt")
    parser.add_argument("--no-strict", action="store_true", help="load what fits, even if much is missing or has no place")
    layers.add_settings(parser, sections=("model",))
    parsed = terminal.parse_settings(parser, words)
    source, destination, to = parsed["source"], parsed.get("destination"), parsed.get("to")
    overwrite, revision = bool(parsed.get("overwrite")), parsed.get("revision")
    fields = layers.model_fields(layers.layer_of(parsed)) | parse_answers(parsed.get("answers") or [])

    from vitrail import weights
    from vitrail.weights.convert import place, planned, write

    if there := parsed.get("suggest_names"):
        if destination or to or parsed.get("names"):
            raise ValueError("--suggest-names converts nothing; leave out DST, --to and --names, which come after it")
        if Path(there).exists() and not overwrite:
            raise ValueError(f"{there} exists; give another file, or --overwrite")
        names = weights.suggest_names(source, revision=revision, **fields)
        print_suggestion(names, source, names.save(there))
        return terminal.OK
    if destination is None or to is None:
        raise ValueError("convert needs DST and --to timm|hf|torchvision|npz; see vitrail convert --help")
    path = place(to, destination, overwrite=overwrite)
    strict = not parsed.get("no_strict")
    model = weights.load(source, revision=revision, strict=strict, names=parsed.get("names"), **fields)
    assert isinstance(model.receipt, weights.Receipt)
    print(model.receipt.verbose() if parsed.get("verbose") else model.receipt, end="\n\n")
    plan = planned(model, to)
    write(plan, path, overwrite=overwrite)
    for note in plan.notes:
        terminal.say(f"Note: {note}.")
    terminal.say(f"Written: {path}. It opens with")
    terminal.say(f"  {plan.opens.replace('PATH', str(path))}")
    return terminal.OK


def parse_answers(words: list[str]) -> dict[str, Any]:
    """Return the answers in FIELD=VALUE. Raises ValueError for a word of another form."""
    import yaml

    answers = {}
    for word in words:
        name, given, value = word.partition("=")
        if not given or not value:
            raise ValueError(f'--answers "{word}" is not of the form FIELD=VALUE, as in num_heads=4')
        answers[name] = yaml.safe_load(value.strip("'\""))
    return answers


def print_suggestion(names: NamesFile, source: str, path: Path) -> None:
    """Print what a names file holds, what to look at in it, and how to use it."""
    unsure = [line.theirs for line in names.lines if line.comment.endswith("alone")]
    unplaced = [line.theirs for line in names.lines if line.ours == "ignore"]
    terminal.say(f"Written: {path}, {terminal.counted(len(names.lines), 'line')}.")
    if unsure:
        terminal.say(f"Only their order tells what these are, so look at them: {', '.join(unsure)}.")
    if unplaced:
        terminal.say(f"No place was found for {', '.join(unplaced)}: they are left out, which changes what the model computes.")
    if names.questions:
        fields = ", ".join(question.field for question in names.questions)
        terminal.say(f"What no tensor tells stands there as comments, to be answered: {fields}.")
    terminal.say("Then")
    terminal.say(f"  vitrail convert {source} DST --to timm --names {path}")
    terminal.say(f"  vitrail show {path}")
