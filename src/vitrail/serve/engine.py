"""Requests to results: admission, decoding, batches and explanations of all models of a server."""

# B batch · C channels · H W image · E embedding

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, ParamSpec, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.data.decode import BadImage, eval_view
from vitrail.deploy.embeddings import FEATURES
from vitrail.deploy.embeddings import NOT_FINITE as EMBEDDING_NOT_FINITE
from vitrail.deploy.predict import Prediction
from vitrail.serve.batcher import Batcher, Closed, QueueFull, TooLate, TooSlow
from vitrail.serve.describe import describe
from vitrail.serve.images import Upload, require_count
from vitrail.serve.metrics import Metrics
from vitrail.serve.models import ServedModel
from vitrail.serve.problems import Problem
from vitrail.serve.settings import ServeSettings
from vitrail.settings import Preprocessing, nearest

Work = Literal["predict", "embed"]
"""Kinds of batches; each has a queue of its own."""
P = ParamSpec("P")
T = TypeVar("T")
Raw = TypeVar("Raw")
Ready = TypeVar("Ready")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class PredictItem:
    """An image to predict, with the options of its request."""

    name: str
    image: bytes | UInt8[Tensor, "C H W"]
    """The file; decoded, its evaluation view."""
    top: int
    coverage: float | None


@dataclass(frozen=True, eq=False)
class EmbedItem:
    """An image to embed, with the options of its request."""

    image: bytes | UInt8[Tensor, "C H W"]
    pool: str


class Engine:
    """The models of a server, and what they are asked for. Every refusal is a Problem."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ServeSettings) -> None:
        if not models:
            raise ValueError("there is no model to serve; name a run")
        self.models, self.settings = dict(models), settings
        self.descriptions = {name: describe(model) for name, model in models.items()}
        """Answers of `/v1/model`; to find out what a model offers takes a pass of it."""
        self.stopping = False
        self.metrics = Metrics()
        self._decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._predict = {name: self._batcher(model, "predict", _decode_predict, _predict) for name, model in models.items()}
        self._embed = {name: self._batcher(model, "embed", _decode_embed, _embed) for name, model in models.items()}

    def model(self, name: str | None) -> ServedModel:
        """Return a model by its name; the first without one. Raises Problem for a name that there is not."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Problem(404, f'model "{name[:80]}" is none of {", ".join(self.models)}{nearest(name, list(self.models))}')
        return self.models[name]

    def require_room(self, model: ServedModel, work: Work) -> None:
        """Raise Problem where not even one image has a place, before a body is read."""
        with _refusals():
            (self._predict if work == "predict" else self._embed)[model.name].require_room(1)

    def require_explain_room(self, model: ServedModel) -> None:
        """Raise Problem where another explanation has no place."""
        if self.stopping:
            raise Problem(503, "the server is stopping")
        if model.explaining >= self.settings.queue_explanations:
            raise Problem(429, "too many explanations are waiting", headers={"Retry-After": "2"})

    async def predict(
        self, model: ServedModel, uploads: Sequence[Upload], *, top: int, coverage: float | None
    ) -> list[Prediction]:
        """Return one prediction per image, in order."""
        if coverage is not None:
            try:
                model.predictor.check_coverage(coverage)
            except ValueError as error:
                raise Problem(422, str(error)) from None
        items = [PredictItem(upload.name, upload.contents, top, coverage) for upload in uploads]
        results = await self._submit(self._predict[model.name], items)
        return [
            result
            if isinstance(result, Prediction)
            else Prediction(item.name, None, None, (), reason_of(result), () if model.card.task == "multi-label" else None)
            for item, result in zip(items, results, strict=True)
        ]

    async def embed(self, model: ServedModel, uploads: Sequence[Upload], *, pool: str) -> list[list[float] | str]:
        """Return the embedding of each image, or the reason why there is none."""
        if pool in model.missing_pools:
            raise Problem(422, model.missing_pools[pool])
        results = await self._submit(self._embed[model.name], [EmbedItem(upload.contents, pool) for upload in uploads])
        return [reason_of(result) if isinstance(result, Exception) else result for result in results]

    async def run_beside(self, model: ServedModel, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run other work on a model in its own thread, one call at a time.

        Raises Problem: 429 where too many wait, 503 where it takes too long, 422 with the line of a ValueError.
        """
        self.require_explain_room(model)
        loop = asyncio.get_running_loop()
        model.explaining += 1
        work = loop.run_in_executor(model.explainer, functools.partial(function, *args, **kwargs))
        work.add_done_callback(lambda _: _left(model))
        try:
            return await asyncio.wait_for(asyncio.shield(work), self.settings.explain_timeout_s)
        except TimeoutError:
            raise Problem(503, f"the explanation took longer than {self.settings.explain_timeout_s:g} s") from None
        except ValueError as error:
            raise Problem(422, str(error)) from None

    def metrics_text(self) -> bytes:
        """Return the numbers for Prometheus."""
        for work, batchers in (("predict", self._predict), ("embed", self._embed)):
            for name, batcher in batchers.items():
                self.metrics.set_inside(name, work, batcher.inside)
        return self.metrics.text()

    async def close(self) -> None:
        """Take no more requests, answer those inside, and end the threads."""
        self.stopping = True
        closing = []
        for name in self.models:
            predicting, embedding = self._predict[name], self._embed[name]
            predicting.stop()
            embedding.stop()
            closing += [predicting.close(self.settings.drain_timeout_s), embedding.close(self.settings.drain_timeout_s)]
        await asyncio.gather(*closing)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _batcher(
        self,
        model: ServedModel,
        work: Work,
        decode: Callable[[Preprocessing, int, Raw], Ready],
        compute: Callable[[ServedModel, Sequence[Ready]], Sequence[Result]],
    ) -> Batcher[Raw, Ready, Result]:
        return Batcher(
            functools.partial(decode, model.predictor.preprocessing, self.settings.max_pixels),
            functools.partial(compute, model),
            preparers=self._decoders,
            workers=model.workers,
            batches=model.share.batches,
            batch_size=self.settings.batch_size,
            capacity=self.settings.queue_images,
            threads=self.settings.decoders,
            prepare_timeout_s=self.settings.decode_timeout_s,
            on_batch=functools.partial(self.metrics.observe_batch, model.name, work),
        )

    async def _submit(self, batcher: Batcher[Raw, Ready, Result], items: Sequence[Raw]) -> list[Result | Exception]:
        require_count(len(items), self.settings)
        with _refusals():
            return await batcher.submit(items, timeout_s=self.settings.timeout_s)


def reason_of(error: Exception) -> str:
    """Return the line for an image that can't be read. Any other error is a fault of the server, and raised."""
    if isinstance(error, BadImage | TooSlow):
        return str(error)
    raise error


@contextmanager
def _refusals() -> Iterator[None]:
    """Convert the batcher's refusals to Problems."""
    try:
        yield
    except QueueFull as error:
        raise Problem(429, str(error), headers={"Retry-After": str(error.retry_after_s)}) from None
    except (TooLate, Closed) as error:
        raise Problem(503, str(error), headers={"Retry-After": "1"}) from None


def _left(model: ServedModel) -> None:
    model.explaining -= 1


# --------------------------------------------------------------------------------------------------------------------
# In threads


def _decode_predict(preprocessing: Preprocessing, max_pixels: int, item: PredictItem) -> PredictItem:
    assert isinstance(item.image, bytes)
    return replace(item, image=eval_view(item.image, preprocessing, max_pixels=max_pixels))


def _decode_embed(preprocessing: Preprocessing, max_pixels: int, item: EmbedItem) -> EmbedItem:
    assert isinstance(item.image, bytes)
    return replace(item, image=eval_view(item.image, preprocessing, max_pixels=max_pixels))


def _predict(model: ServedModel, items: Sequence[PredictItem]) -> list[Prediction]:
    """Predict a batch; images with the same options are named together."""
    logits = model.predictor.logits(_stacked(items))
    predictions: dict[int, Prediction] = {}
    for options in dict.fromkeys((item.top, item.coverage) for item in items):
        places = [place for place, item in enumerate(items) if (item.top, item.coverage) == options]
        named = model.predictor.name(
            [items[place].name for place in places], logits[places], top=options[0], coverage=options[1]
        )
        predictions.update(zip(places, named, strict=True))
    return [predictions[place] for place in range(len(items))]


@torch.inference_mode()
def _embed(model: ServedModel, items: Sequence[EmbedItem]) -> list[list[float] | BadImage]:
    """Embed a batch; all pools come from one pass."""
    predictor = model.predictor
    inputs = normalise(_stacked(items).to(predictor.device), predictor.preprocessing)
    features = predictor.model.features(inputs)
    pools = {pool: FEATURES[pool](features, predictor.model).float().cpu() for pool in dict.fromkeys(i.pool for i in items)}
    rows = [pools[item.pool][place] for place, item in enumerate(items)]
    return [row.tolist() if bool(row.isfinite().all()) else BadImage(EMBEDDING_NOT_FINITE) for row in rows]


def _stacked(items: Sequence[PredictItem | EmbedItem]) -> UInt8[Tensor, "B C H W"]:
    views = [item.image for item in items]
    return torch.stack([view for view in views if isinstance(view, Tensor)])
