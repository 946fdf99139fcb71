"""A small model that is served, images for it, and calls of its app without a socket."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI
from PIL import Image
from torch import Tensor

from vitrail.deploy import Predictor
from vitrail.models import ViT
from vitrail.models.card import Calibration
from vitrail.serve.app import create_app
from vitrail.serve.models import ServedModel
from vitrail.serve.settings import ServeSettings
from vitrail.settings import Preprocessing
from vitrail.weights import save_model

CLASSES = ("ant", "bee", "cat", "dog", "eel")
LONG = 60.0
PNG = {"Content-Type": "image/png"}
Call = Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]


def make_run(folder: Path, *, seed: int = 0, task: str = "classify") -> Path:
    """A run folder with random weights that are large enough to tell images apart, and a calibration."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = ViT(img_size=16, patch_size=8, num_classes=5, embed_dim=16, depth=2, num_heads=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.preprocessing = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.classes = CLASSES
    calibration = None
    if task == "classify":
        calibration = Calibration(images=40, temperature=2.0, conformal_scores=(0.2, 0.5, 0.9), outlier_energy=-3.0)
    model.card = type(model.card)(**{**vars(model.card), "task": task, "calibration": calibration})
    save_model(model, folder, data="animals")
    return folder


def picture(seed: int = 0, *, size: tuple[int, int] = (24, 20), kind: str = "PNG") -> bytes:
    """An image file."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


class Held(Predictor):
    """Predictor whose passes wait until `go` is set; `begun` says that one does."""

    def hold(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()

    def logits(self, images: Tensor) -> Tensor:
        self.begun.set()
        assert self.go.wait(LONG)
        return super().logits(images)


def served(run: Path, name: str = "animals", *, held: bool = False) -> ServedModel:
    predictor = (Held if held else Predictor)(run, device="cpu", backend="fp32")
    if isinstance(predictor, Held):
        predictor.hold()
    return ServedModel(name, predictor)


def app_of(*models: ServedModel, **settings: Any) -> FastAPI:
    return create_app({model.name: model for model in models}, ServeSettings(access_log=False, **settings))


def calls(app: FastAPI, call: Call, **options: Any) -> None:
    """Call an app as a client does, and end it."""

    async def main() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vitrail", timeout=LONG, **options) as client,
        ):
            await call(client)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0.002)
