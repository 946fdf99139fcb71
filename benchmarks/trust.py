"""Calibration, coverage and outliers of a run of Fashion-MNIST, on the 10,000 test images and on the digits of MNIST.

    python benchmarks/trust.py                    trains for 2 minutes; writes results/trust.json
    python benchmarks/trust.py --run RUN          measures a run that is there

Temperature, conformal scores and the outlier threshold are fitted to the run's validation images, as after every training.
MNIST is the set `mnist` (docs/data.md), whose 10,000 test images are none of the run's classes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import accuracy
import machine
from vitrail import load
from vitrail.data.augment import normalise
from vitrail.data.named import NAMED, find, read_arrays
from vitrail.evaluate.outliers import auroc, energy
from vitrail.evaluate.trust import measure_trust

DATA, OUTSIDE = "fashion-mnist", "mnist"


def test_logits(model: Any, name: str) -> tuple[Tensor, Tensor]:
    """Return logits and labels of the test images of a set of grey images of 28 px."""
    images, labels = read_arrays(NAMED[name], find(name), "test")
    with torch.no_grad():
        found = [model(normalise(part, model.preprocessing)).float() for part in torch.from_numpy(images).split(256)]
    return torch.cat(found), torch.as_tensor(labels).long()


def measure(run: Path) -> dict[str, Any]:
    """Measure a run."""
    model: Any = load(str(run)).eval()
    calibration = model.card.calibration
    assert calibration is not None, f"{run} has no calibration"
    logits, labels = test_logits(model, DATA)
    trust = measure_trust(logits, labels, calibration)
    inside, outside = energy(logits), energy(test_logits(model, OUTSIDE)[0])
    marked = (outside > calibration.outlier_energy).double().mean()
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "temperature": trust.temperature,
        "calibration_error_before": trust.error_before,
        "calibration_error": trust.error,
        "coverage": {f"{each.target:g}": [each.covered.value, each.mean_size] for each in trust.coverages},
        "answered": {f"{each.target:g}": each.share for each in trust.selective},
        "outliers": {"auroc": auroc(inside, outside), "of fashion": trust.outliers.value if trust.outliers else None}
        | {"of digits": float(marked)},
        "calibrated_on": calibration.images,
        "machine": machine.facts(),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--minutes", default="2", help="of training [2]")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "trust.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = args.run or Path(folder) / "run"
        if args.run is None:
            accuracy.vitrail("train", DATA, "--minutes", args.minutes, "--out", str(run))
        found = {"command": f"vitrail train {DATA} --minutes {args.minutes}", **measure(run)}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
