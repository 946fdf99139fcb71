"""The page of a web export: one HTML file, and beside it onnxruntime-web's files where their folder is given."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

from vitrail.deploy.export.metadata import ExportCard

PAGE, RUNTIME = "index.html", "ort"
"""Names of the page, and of the folder of the runtime, in an export."""
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""Files of onnxruntime-web that the page loads."""
_PLACES = (".", "dist", "package/dist", "node_modules/onnxruntime-web/dist")


def write_page(folder: Path, card: ExportCard, *, runtime: Path | None) -> None:
    """Write index.html, and copy the runtime. Raises ValueError for channels that no browser gives, and a wrong folder."""
    assert card.card.preprocessing is not None
    channels = card.card.preprocessing.in_channels
    if channels not in (1, 3):
        raise ValueError(f"a browser gives images of 1 or 3 channels, and the model takes {channels}; export it to onnx")
    text = json.dumps(card.to_dict(), ensure_ascii=False).replace("<", "\\u003c")  # no class name ends the script
    template = files("vitrail.deploy.export").joinpath("page.html").read_text(encoding="utf-8")
    (folder / PAGE).write_text(template.replace("CARD</script>", f"{text}</script>"), encoding="utf-8")
    if runtime is not None:
        source = find_runtime(runtime)
        (folder / RUNTIME).mkdir()
        for name in RUNTIME_FILES:
            shutil.copyfile(source / name, folder / RUNTIME / name)


def find_runtime(folder: Path) -> Path:
    """Return the folder of the runtime's files: the one given, or that of an unpacked package in it. Raises ValueError."""
    for place in _PLACES:
        if all((folder / place / name).is_file() for name in RUNTIME_FILES):
            return folder / place
    raise ValueError(
        f"{folder} has no {' and '.join(RUNTIME_FILES)}; unpack onnxruntime-web there: npm pack onnxruntime-web, then tar xzf"
    )
