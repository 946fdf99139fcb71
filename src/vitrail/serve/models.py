"""Models that are served: predictor, name and version, and the threads in which they work."""

from __future__ import annotations

import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from vitrail.deploy.backends import BACKENDS
from vitrail.deploy.embeddings import FEATURES
from vitrail.deploy.predict import Predictor
from vitrail.evaluate.features import model_hash
from vitrail.models.backbone import Backbone
from vitrail.models.card import Card
from vitrail.serve.batcher import batch_sizes

WORTH_A_CORE = 1.5
"""Speed-up of a full batch from which on the last core computes as well."""
MOST_BATCHES = 4
"""Batches at a time: more would wait for Python's lock."""
SOON_S, NOT_SOON = 0.02, 1.5
"""Seconds of a single image in fewer threads, and their ratio to those in all threads, of which one must hold."""
_CALLS, _LONG_S = 5, 0.5  # of a measurement: so many calls, fewer where they take so long
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Share:
    """Share of the cores that a model uses."""

    batches: int
    """Batches that are computed at a time."""
    threads: int
    """Threads of each batch."""


class ServedModel:
    """A model under a name.

    Everything that runs the model does so outside of the event loop: batches in `workers`, any other work in `explainer`, which
    is one thread; so batches go on while a picture is explained. `share` is that of all of torch's threads by default.
    """

    def __init__(self, name: str, predictor: Predictor, *, source: str = "", share: Share | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f'"{name}" is no name of a model; use up to 64 letters, digits, ".", "_" and "-": NAME=RUN')
        self.name, self.predictor, self.source = name, predictor, source
        receipt = predictor.model.receipt
        self.version: str = (receipt.sha256 if receipt is not None else None) or model_hash(predictor.model)
        """SHA-256 of the file of the weights; of the tensors where there is no file."""
        self.missing_pools = missing_pools(predictor)
        """Pools of embeddings that the model does not have, each with the reason."""
        self.share = Share(1, torch.get_num_threads()) if share is None else share
        self.workers = self._threads(self.share.batches, "model")
        self.explainer = self._threads(1, "explain")
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
        """Let torch prepare its kernels for each size of a batch in each thread, before anybody waits for them."""
        together = threading.Barrier(self.share.batches)

        def prepare() -> None:
            together.wait()  # so that each thread gets one of these calls
            for count in reversed(batch_sizes(self.predictor.batch_size)):
                compute_noise(self.predictor, count)

        for call in [self.workers.submit(prepare) for _ in range(self.share.batches)]:
            call.result()

    def _threads(self, count: int, work: str) -> ThreadPoolExecutor:
        """Return threads, each of which computes in as many of torch's as the share says."""
        return ThreadPoolExecutor(
            count,
            thread_name_prefix=f"{work} {self.name}",
            initializer=torch.set_num_threads,  # of the calling thread
            initargs=(self.share.threads,),
        )

    def close(self) -> None:
        """Let the threads end."""
        for executor in (self.workers, self.explainer):
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
        models[name] = ServedModel(name, predictor, source=run, share=choose_share(predictor))
        models[name].warm_up()
    return models


def compute_noise(predictor: Predictor, count: int) -> float:
    """Compute the logits of so many images of noise. Return the seconds; the first call chooses the backend."""
    preprocessing = predictor.preprocessing
    shape = (count, preprocessing.in_channels, *preprocessing.img_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    predictor.logits(images)
    return time.perf_counter() - start


def choose_share(predictor: Predictor) -> Share:
    """Choose the share of a model by measuring it."""
    most = torch.get_num_threads()

    def seconds(count: int, threads: int) -> float:
        torch.set_num_threads(threads)
        compute_noise(predictor, count)
        times = [compute_noise(predictor, count)]
        while len(times) < _CALLS and sum(times) < _LONG_S:
            times.append(compute_noise(predictor, count))
        return statistics.median(times)

    try:
        compute_noise(predictor, predictor.batch_size)  # a runtime with threads of its own takes as many as torch has now
        beside = predictor.device.type == "cpu" and BACKENDS[predictor.backend].beside_itself
        return share_of(most, partial(seconds, 1), partial(seconds, predictor.batch_size), beside=beside)
    finally:
        torch.set_num_threads(most)


def share_of(most: int, one: Callable[[int], float], full: Callable[[int], float], *, beside: bool) -> Share:
    """Return the share of a model by the seconds of one image, and of a full batch, in so many threads.

    Threads of a product wait for each other: where one of them shares its core with the event loop, all are late. So where
    one image stays fast, each batch has one thread, or a few of many; `beside` says whether batches can be computed beside
    each other. Else there is one batch at a time, in `most` threads, or in one less where that is hardly slower.
    """
    if most == 1:
        return Share(1, 1)
    if beside:
        batches = min(most, MOST_BATCHES)
        threads = 1 if batches == most else (most - 1) // batches
        if one(threads) <= max(SOON_S, NOT_SOON * one(most)):
            return Share(batches, threads)
    return Share(1, most if full(most - 1) >= WORTH_A_CORE * full(most) else most - 1)


def split_name(text: str) -> tuple[str, str]:
    """Split NAME=RUN; a run without a name gets that of its folder or file."""
    name, equals, run = text.partition("=")
    if equals and _NAME.fullmatch(name) and not os.path.exists(text):
        return name, run
    path = Path(text).expanduser().resolve() if os.path.exists(os.path.expanduser(text)) else Path(text)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem if path.is_file() else path.name).strip("-.")
    return stem or "model", text
