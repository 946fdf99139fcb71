"""The page of `vitrail serve`: from a hover to the picture, in headless Chromium; and what the attention of an image weighs.

    python benchmarks/page.py [--models Ti/16 B/16 L/16] [--img-size 224] [--hovers 60] [--run RUN]

Each model has random weights (or is a run), and is served on loopback. A hover is a pointer event on another patch; its time
goes from the event to the frame after the one in which the picture and all thumbnails are drawn, so it has one frame of waiting
in it. Writes benchmarks/results/page.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from playwright.sync_api import Page, sync_playwright

import machine
from vitrail.deploy import Predictor
from vitrail.models import create_model
from vitrail.serve.app import create_app
from vitrail.serve.attention import attention_message, attention_size
from vitrail.serve.explorer import package_samples
from vitrail.serve.models import ServedModel
from vitrail.serve.server import address_of, bind
from vitrail.serve.settings import ServeSettings
from vitrail.settings import Preprocessing
from vitrail.weights import save_model

HOVER = """async (hovers) => {
  const canvas = document.querySelector(".picture");
  const box = canvas.getBoundingClientRect();
  const frame = () => new Promise((go) => requestAnimationFrame(go));
  const times = { event: [], picture: [] };
  for (let hover = 0; hover < hovers; hover++) {
    const [x, y] = [(hover * 0.377) % 1, (hover * 0.619) % 1];
    await frame();
    const start = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove", {
      clientX: box.x + x * box.width, clientY: box.y + y * box.height, pointerType: "mouse", bubbles: true,
    }));
    times.event.push(performance.now() - start);
    await frame();
    await frame();
    times.picture.push(performance.now() - start);
  }
  return times;
}"""
"""Hovers from patch to patch: milliseconds in the event (the picture is drawn then), and until the next frame is there."""


def make_run(name: str, side: int, folder: Path) -> Path:
    """A run of random weights."""
    torch.manual_seed(0)
    model = create_model(name, img_size=side, num_classes=10)
    model.preprocessing = Preprocessing(img_size=(side, side), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    folder.mkdir()
    save_model(model, folder, data="random weights")
    return folder


@contextmanager
def serving(model: ServedModel) -> Iterator[str]:
    """Serve a model on loopback, and return its address."""
    listener = bind("127.0.0.1", 0)
    app = create_app({model.name: model}, ServeSettings(access_log=False))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join()


def weigh(model: ServedModel) -> dict[str, Any]:
    """Bytes of the attention of an image, as it is and gzipped, and the seconds to compute the first message."""
    size = attention_size(model.model)
    assert size is not None
    image, first = package_samples()[0].contents, tuple(range(size.layers_per_message))
    attention_message(model.model, [image], layers=first)
    start = time.perf_counter()
    message = attention_message(model.model, [image], layers=first).encode()
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    zipped = len(gzip.compress(message, compresslevel=1))
    return {
        "layers": size.layers,
        "heads": size.heads,
        "grid": size.grid,
        "messages": -(-size.layers // size.layers_per_message),
        "message_mb": len(message) / 1e6,
        "gzip_mb": zipped / 1e6,
        "compute_s": seconds,
        "gzip_s": time.perf_counter() - start,
    }


def hovers_of(page: Page, address: str, hovers: int) -> dict[str, float]:
    """Open the page, wait for all layers, and hover."""
    start = time.perf_counter()
    page.goto(f"{address}/#layer=0")
    page.wait_for_selector(".pane.full", timeout=120_000)
    page.wait_for_selector(".pane[aria-busy=false]", timeout=120_000)
    loaded = time.perf_counter() - start
    page.evaluate(HOVER, 5)
    times = page.evaluate(HOVER, hovers)
    return {
        "load_s": loaded,
        "event_ms": statistics.median(times["event"]),
        "picture_ms": statistics.median(times["picture"]),
        "picture_p95_ms": statistics.quantiles(times["picture"], n=20)[-1],
        "picture_max_ms": max(times["picture"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["Ti/16", "B/16", "L/16"])
    parser.add_argument("--run", type=Path, nargs="*", default=[])
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--hovers", type=int, default=60)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "page.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine.facts(), "img_size": args.img_size, "models": {}}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        program = shutil.which("chromium")
        assert program is not None, "there is no chromium here; on Debian: apt-get install chromium"
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        result["browser"] = browser.version
        runs = {run.name: run for run in args.run}
        for name in args.models:
            runs[name] = make_run(name, args.img_size, Path(folder) / name.replace("/", "-"))
        for name, run in runs.items():
            model = ServedModel(name.replace("/", "-"), Predictor(run, device="cpu", backend="fp32"), source=str(run))
            with serving(model) as address:
                page = browser.new_page(viewport={"width": 1440, "height": 1000})
                row = weigh(model) | hovers_of(page, address, args.hovers)
                page.close()
            result["models"][name] = row
            print(name, json.dumps(row), flush=True)
        browser.close()
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
