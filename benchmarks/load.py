"""Time and memory of loading ViT-B/16 from one .safetensors file: `vitrail.load` beside `timm.create_model`.

    python benchmarks/load.py [--rounds 9] [--write]

Each load is its own process, the libraries in turn, the file in the system's cache. Time is that of the one call (the
libraries are imported before it), memory the rise of the process's resident size at its greatest, the mapped file included.
vitrail's includes the file's sha256 for the receipt. Needs Linux. --write puts the result into benchmarks/results/load.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import RESULTS, facts
from vitrail.bench.rounds import ratios, summary

NAME = "vit_base_patch16_224"
CALLS = {
    "vitrail": "import vitrail.weights; call = lambda: vitrail.weights.load({file!r})",
    "timm": f"import timm; call = lambda: timm.create_model({NAME!r}, checkpoint_path={{file!r}})",
}
MORE = {  # what else reads a checkpoint; timm has no counterpart
    "adapted": "import vitrail.weights; "
    "call = lambda: vitrail.weights.load({file!r}, img_size=384, in_channels=5, num_classes=7)",
    "converted": "import vitrail.weights; from vitrail.weights import convert; "
    "call = lambda: (model := vitrail.weights.load({file!r}), convert(model, 'hf', {file!r} + '.hf', overwrite=True))[0]",
}
PROGRAM = """
import json, pathlib, time
{call}
def kilobytes(field):
    [line] = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1])
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: imports have one of their own
before, start = kilobytes("VmRSS"), time.perf_counter()
model = call()
seconds = time.perf_counter() - start
peak = kilobytes("VmHWM")
count = sum(p.numel() for p in model.parameters())
print(json.dumps({{"seconds": seconds, "peak_mb": (peak - before) / 1e3, "parameters": count}}))
"""


def measure(library: str, file: Path) -> dict[str, float]:
    """One load in a process of its own."""
    program = PROGRAM.format(call=(CALLS | MORE)[library].format(file=str(file)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write results/load.json")
    args = parser.parse_args()
    import timm
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file(timm.create_model(NAME).state_dict(), file)
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(args.rounds + 1):
            order = list(CALLS) if number % 2 else list(CALLS)[::-1]
            one = {library: measure(library, file) for library in order}
            assert one["vitrail"]["parameters"] == one["timm"]["parameters"]
            rounds.append(one)
        rounds = rounds[1:]  # the first fills caches
        more = {name: measure(name, file)["peak_mb"] for name in MORE}
        model_mb = 4 * rounds[0]["vitrail"]["parameters"] / 1e6
    result: dict[str, Any] = {"machine": facts("timm", "safetensors"), "model": NAME, "rounds": len(rounds)}
    for figure in ("seconds", "peak_mb"):
        every = {library: [one[library][figure] for one in rounds] for library in CALLS}
        result[figure] = {library: summary(values) for library, values in every.items()}
        result[f"{figure}_ratio"] = summary(ratios(every["vitrail"], every["timm"]))
        print(figure, {k: round(v["median"], 3) for k, v in result[figure].items()}, "ratio", result[f"{figure}_ratio"])
    result["model_mb"], result["peak_mb_of"] = round(model_mb), more
    print(f"the model has {model_mb:.0f} MB; greatest memory, adapted and converted:", more)
    if args.write:
        (RESULTS / "load.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
