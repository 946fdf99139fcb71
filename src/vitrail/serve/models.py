"""Models that are served: predictor, name and version, and the threads in which they work."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from vitrail.deploy.embeddings import FEATURES
from vitrail.deploy.predict import Predictor
from vitrail.evaluate.features import model_hash
from vitrail.models.backbone import Backbone
from vitrail.models.card import Card
from vitrail.serve.batcher import batch_sizes

WORTH_A_CORE = 1.5
"""Speed-up of a full batch from which on the last core computes as well."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ServedModel:
    """A model under a name.

    Everything that runs the model does so outside of the event loop: batches in `worker`, any other work in `explainer`. Each
    is one thread, so batches go on while a picture is explained.
    """

    def __init__(self, name: str, predictor: Predictor, *, source: str = "") -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f'"{name}" is no name of a model; use up to 64 letters, digits, ".", "_" and "-": NAME=RUN')
        self.name, self.predictor, self.source = name, predictor, source
        receipt = predictor.model.receipt
        self.version: str = (receipt.sha256 if receipt is not None else None) or model_hash(predictor.model)
        """SHA-256 of the file of the weights; of the tensors where there is no file."""
        self.missing_pools = missing_pools(predictor)
        """Pools of embeddings that the model does not have, each with the reason."""
        self.worker = ThreadPoolExecutor(1, thread_name_prefix=f"model {name}")
        self.explainer = ThreadPoolExecutor(1, thread_name_prefix=f"explain {name}")
        self.explaining = 0
        """Calls that are in `explainer` or wait for it."""

    @property
    def model(self) -> Backbone:
        """The model."""
        return self.predictor.model

    @property
    def card(self) -> Card:
        """Card of the model: preprocessing, classes, task, calibration."""
        return self.model.card

    def warm_up(self) -> None:
        """Let torch prepare its kernels for each size of a batch, before anybody waits for them."""
        for count in reversed(batch_sizes(self.predictor.batch_size)):
            self.compute(count)

    def compute(self, count: int) -> float:
        """Compute the logits of so many images of noise. Return the seconds; the first call chooses the backend."""
        preprocessing = self.predictor.preprocessing
        shape = (count, preprocessing.in_channels, *preprocessing.img_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        start = time.perf_counter()
        self.predictor.logits(images)
        return time.perf_counter() - start

    def close(self) -> None:
        """Let the threads end."""
        for executor in (self.worker, self.explainer):
            executor.shutdown(wait=False, cancel_futures=True)


@torch.inference_mode()
def missing_pools(predictor: Predictor) -> dict[str, str]:
    """Return the pools of `embed` that a model does not have, each with the reason."""
    preprocessing, missing = predictor.preprocessing, {}
    blank = torch.zeros(1, preprocessing.in_channels, *preprocessing.img_size, device=predictor.device)
    features = predictor.model.features(blank)
    for pool, function in FEATURES.items():
        try:
            function(features, predictor.model)
        except ValueError as error:
            missing[pool] = str(error)
    return missing


def load_models(
    runs: Iterable[str], *, device: str = "auto", batch_size: int = 32, backend: str = "auto", calibrated: bool = True
) -> dict[str, ServedModel]:
    """Load models by name, in order: each of `runs` is a run or a checkpoint, as `Predictor` takes it, or NAME=RUN.

    Without a name it has that of its folder or file. Raises ValueError for two models of one name, and as `Predictor` does.
    """
    models: dict[str, ServedModel] = {}
    for text in runs:
        name, run = split_name(text)
        if name in models:
            raise ValueError(f'two models are called "{name}"; give one of them another name: NAME={run}')
        predictor = Predictor(run, device=device, batch_size=batch_size, backend=backend, calibrated=calibrated)
        models[name] = ServedModel(name, predictor, source=run)
    share_cores(models.values())
    for model in models.values():
        model.warm_up()
    return models


def share_cores(models: Iterable[ServedModel]) -> None:
    """Set the number of torch's threads: one core is left to sockets and decoding where the models hardly miss it."""
    most, needed = torch.get_num_threads(), 1
    for model in models:

        def seconds(threads: int, model: ServedModel = model) -> float:
            torch.set_num_threads(threads)
            model.compute(model.predictor.batch_size)
            return statistics.median(model.compute(model.predictor.batch_size) for _ in range(5))

        needed = max(needed, choose_threads(most, seconds))
    torch.set_num_threads(needed)


def choose_threads(most: int, seconds: Callable[[int], float]) -> int:
    """Return `most` threads, or one less where a full batch takes hardly longer then.

    Threads of a product wait for each other: where one of them shares its core with the event loop, all are late.
    """
    if most == 1:
        return most
    with_all = seconds(most)  # first: a runtime with threads of its own takes as many as torch has when it compiles
    return most if seconds(most - 1) >= WORTH_A_CORE * with_all else most - 1


def split_name(text: str) -> tuple[str, str]:
    """Split NAME=RUN; a run without a name gets that of its folder or file."""
    name, equals, run = text.partition("=")
    if equals and _NAME.fullmatch(name) and not os.path.exists(text):
        return name, run
    path = Path(text).expanduser().resolve() if os.path.exists(os.path.expanduser(text)) else Path(text)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem if path.is_file() else path.name).strip("-.")
    return stem or "model", text
