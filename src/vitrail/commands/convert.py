"""`vitrail convert`: write a checkpoint for another library."""

from __future__ import annotations

from vitrail import terminal

USAGE = "convert SRC DST --to …"
SUMMARY = "a checkpoint for timm, transformers (hf), torchvision, or as Google's .npz"

HELP = """Writes a checkpoint that another library loads strictly, with equal outputs; what it can't hold is refused.

  vitrail convert runs/first first-timm --to timm      a folder: timm.create_model("local-dir:first-timm", …)
  vitrail convert timm/vit_small_patch16_224.augreg_in21k vit.npz --to npz   a file: Google's layout
  vitrail convert weights.pth weights-hf --to hf --model.num_heads 8
  vitrail convert google/vit-base-patch16-224 vit.pth --to torchvision --model.norm_eps 1e-6

SRC is a run, a Hub id, a file or a folder of any origin. --model.FIELD sets what no tensor determines, or changes it."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    from vitrail.settings import layers

    usage = "SRC DST --to timm|hf|torchvision|npz [--overwrite] [--model.FIELD VALUE]… [--verbose]"
    parser = terminal.make_settings_parser("convert", HELP, usage=usage)
    parser.add_argument("source", metavar="SRC", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("destination", metavar="DST", help="where it goes: a folder for timm and hf, else a file")
    parser.add_argument("--to", type=str, required=True, metavar="TARGET", help="timm, hf, torchvision or npz")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
    parser.add_argument("--revision", type=str, metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--verbose", action="store_true", help="a line for every tensor of the receipt")
    parser.add_argument("--no-strict", action="store_true", help="load what fits, even if much is missing or has no place")
    layers.add_settings(parser, sections=("model",))
    parsed = terminal.parse_settings(parser, words)

    from vitrail import weights
    from vitrail.weights.convert import place, planned, write

    overwrite, fields = bool(parsed.get("overwrite")), layers.model_fields(layers.layer_of(parsed))
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
    return terminal.OK
