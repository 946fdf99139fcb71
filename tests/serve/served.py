"""Tiny models behind a server in a thread, for the tests of the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import uvicorn

from vitrail.deploy import Predictor
from vitrail.models import Cait, Swin, ViT
from vitrail.models.backbone import Backbone
from vitrail.models.card import Calibration
from vitrail.serve.app import create_app
from vitrail.serve.models import ServedModel
from vitrail.serve.server import address_of, bind
from vitrail.serve.settings import ServeSettings
from vitrail.settings import Preprocessing
from vitrail.weights import save_model

CLASSES = ("ant", "bee", "cat", "dog", "eel")
SIDE = 32


def tiny_vit(**fields: Any) -> ViT:
    """A ViT whose attention differs from place to place."""
    base = {"img_size": SIDE, "patch_size": 8, "num_classes": 5, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return ViT(**base | fields)


def tiny_swin() -> Swin:
    """A model without attention over the whole image."""
    return Swin(img_size=SIDE, patch_size=4, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), num_classes=5)


def tiny_cait() -> Cait:
    """A model whose class token alone looks at the whole image."""
    return Cait(img_size=SIDE, patch_size=8, num_classes=5, embed_dim=16, depth=1, num_heads=2, class_depth=2)


def served(name: str, model: Backbone, folder: Path, *, calibrated: bool = True) -> ServedModel:
    """Save a model with random weights as a run, and load it as the server does."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.35)
    model.preprocessing = Preprocessing(img_size=(SIDE, SIDE), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.classes = CLASSES
    if calibrated:
        scores = tuple(step / 40 for step in range(1, 40))
        known = Calibration(images=39, temperature=1.3, conformal_scores=scores, outlier_energy=-100.0)
        model.card = replace(model.card, calibration=known)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder, data="animals")
    return ServedModel(name, Predictor(folder, device="cpu", backend="fp32"))


@contextmanager
def running(models: Mapping[str, ServedModel], **settings: Any) -> Iterator[str]:
    """Serve models on a free port of loopback, and return the address."""
    listener = bind("127.0.0.1", 0)
    app = create_app(models, ServeSettings(access_log=False, **settings))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
