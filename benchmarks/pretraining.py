"""What pre-training without labels brings: frozen features of a backbone before and after it, by k-NN and a linear probe.

    python benchmarks/pretraining.py

Each run is `python -m vitrail pretrain …` and `vitrail probe` in a process of its own. The length is in epochs, so that the
scores do not depend on what else the machine does; the seconds do. The last reconstructions are copied into docs/pictures.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import accuracy
import machine

DATA, EPOCHS = "fashion-sample", 10
OPTIONS = ("--method", "mae", "--train.epochs", str(EPOCHS))
UNTRAINED = ("--method", "mae", "--train.steps", "1", "--optim.lr", "1e-9")


def probed(run: Path) -> dict[str, Any]:
    """Scores of frozen features on the test images."""
    words = ["probe", str(run), DATA, "--json"]
    done = subprocess.run([sys.executable, "-m", "vitrail", *words], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    return {way: {name: found[way]["test"][name] for name in ("accuracy", "interval")} for way in ("knn", "probe")}


def main() -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, options in (("random weights", UNTRAINED), ("pre-trained", OPTIONS)):
            run = Path(folder) / title
            accuracy.vitrail("pretrain", DATA, *options, "--out", str(run))
            pictures = sorted((run / "reconstructions").glob("*.png"))
            shutil.copy(pictures[-1], machine.ROOT / "docs" / "pictures" / "reconstructions.png")
            scores = json.loads((run / "evaluation.json").read_text())
            rows[title] = {
                "top1": scores["knn"]["accuracy"],
                "interval": scores["knn"]["interval"],
                "test_images": scores["count"],
                **accuracy.training(run / "metrics.jsonl"),
                "frozen": probed(run),
            }
    found = {
        "command": shlex.join(["vitrail", "pretrain", DATA, *OPTIONS]),
        "rows": rows,
        "machine": machine.facts(),
    }
    (machine.RESULTS / "pretraining.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
