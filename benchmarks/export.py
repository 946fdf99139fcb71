"""Do exports open without Vitrail and torch, and give the logits that their contract speaks of?

    python benchmarks/export.py RUN [--images DATA] [--count 32] [--environment FOLDER]

RUN is that of `make demo`, or any other. It is exported to ONNX and OpenVINO with --raw-images; some of the images of its
contract are saved as PNG files. A virtual environment with onnxruntime, openvino, numpy and Pillow alone, made by pip, then
runs examples/export_onnx.py and examples/export_openvino.py on them, and the logits are compared with the run's in torch.
Writes benchmarks/results/export.json; the exit code is 1 where a contract is not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import machine
from vitrail import weights
from vitrail.deploy.export import export
from vitrail.deploy.export.contract import FP32, compare_logits
from vitrail.deploy.export.images import read_images
from vitrail.deploy.export.raw import RawImages

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("onnxruntime", "openvino", "numpy", "pillow")
SCRIPTS = {"onnx": "export_onnx.py", "openvino": "export_openvino.py"}
_LIST = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with `PACKAGES`, unless it is there. Return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def save_pictures(run: str, data: str | None, count: int, folder: Path) -> tuple[list[Path], Tensor]:
    """Save images as PNG. Return their paths, and the logits (N, K) of the run in torch."""
    model = weights.load(run).eval()
    assert model.preprocessing is not None
    pictures = read_images(run, data, preprocessing=model.preprocessing, count=count, pictures=True).pictures
    raw, paths, logits = RawImages(model, model.preprocessing).eval(), [], []
    for number, picture in enumerate(pictures):
        path = folder / f"{number}.png"
        Image.fromarray(picture.squeeze(2).numpy() if picture.shape[2] == 1 else picture.numpy()).save(path)
        paths.append(path)
        with torch.inference_mode():
            logits.append(raw(picture[None]))
    return paths, torch.cat(logits)


def measure(run: str, data: str | None, count: int, python: Path, folder: Path) -> dict[str, Any]:
    """Export to each format, and run its example in the environment."""
    installed: dict[str, str] = json.loads(subprocess.check_output([python, "-I", "-c", _LIST], text=True))
    if extra := {"torch", "vitrail"} & installed.keys():
        raise SystemExit(f"the environment has {', '.join(sorted(extra))}; give an empty folder")
    (folder / "images").mkdir()
    paths, reference = save_pictures(run, data, count, folder / "images")
    found: dict[str, Any] = {}
    for to, script in SCRIPTS.items():
        done = export(run, to, out=folder / to, images=data, raw_images=True, count=count)
        command = [str(word) for word in (python, "-I", ROOT / "examples" / script, done.folder, *paths)]
        environment = {**os.environ, "CI": "true"}  # where OpenVINO does not report to its statistics server
        lines = subprocess.check_output(command, text=True, cwd=folder, env=environment).splitlines()
        logits = torch.tensor([json.loads(line)["logits"] for line in lines])
        apart = compare_logits(logits, reference, multi_label=False)
        found[to] = {
            "images": len(lines),
            "max_difference": apart.max_difference,
            "agreement": apart.agreement,
            "contract_max_difference": done.contract.deviation.max_difference,
            "broken": apart.broken(FP32),
        }
    return {"environment": installed, "formats": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run, or a checkpoint with --images")
    parser.add_argument("--images", help="where the images are [the run's validation images]")
    parser.add_argument("--count", type=int, default=32, help="how many images [32]")
    parser.add_argument("--environment", type=Path, help="keep the virtual environment there, or take the one that is there")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "export.json", help="where the results go"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        python = make_environment((args.environment or Path(place, "environment")).absolute())
        result = {"machine": machine.facts(), **measure(args.run, args.images, args.count, python, Path(place))}
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["formats"], indent=2))
    return int(any(each["broken"] for each in result["formats"].values()))


if __name__ == "__main__":
    sys.exit(main())
