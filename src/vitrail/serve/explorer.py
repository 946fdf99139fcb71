"""Endpoints of the page alone: samples, what it needs to know of the models, and the attention of one image."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from PIL import Image
from starlette.responses import Response

from vitrail.data.augment import normalise
from vitrail.data.decode import BadImage, eval_view, read_header
from vitrail.data.listing import files_under
from vitrail.data.named import NAMED
from vitrail.explain.inputs import model_name
from vitrail.models.backbone import Backbone
from vitrail.serve.attention import Queries, attention_message, attention_size
from vitrail.serve.explain import parse_layers
from vitrail.serve.images import read_images
from vitrail.serve.models import ServedModel
from vitrail.serve.problems import Problem
from vitrail.serve.routes import REFUSALS, ModelName, engine_of, image_body, json_response, problems
from vitrail.serve.schemas import Answer
from vitrail.settings import Preprocessing

MAX_SAMPLES = 24


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image that the page offers."""

    id: str
    """Identifier in requests and links: its place and name, never a path."""
    name: str
    media_type: str
    contents: bytes = field(repr=False)


class SizeAnswer(Answer):
    """Size of a model's attention, and how it comes to the page."""

    layers: int
    heads: int
    grid: tuple[int, int]
    prefix: int
    queries: Queries
    layers_per_message: int
    note: str


class ExplorerModelAnswer(Answer):
    """Attention of a model, or the reason why there is none to show."""

    attention: SizeAnswer | None
    why: str


class SampleAnswer(Answer):
    """A sample of the page."""

    id: str
    name: str


class ExplorerAnswer(Answer):
    """Attention of the models and samples: facts for the page that `/v1/model` does not give."""

    models: dict[str, ExplorerModelAnswer]
    samples: list[SampleAnswer]


def package_samples() -> tuple[Sample, ...]:
    """Return the first test image of each class of the embedded Fashion-MNIST sample."""
    known = NAMED["fashion-sample"]
    assert known.installed is not None
    with np.load(known.installed / "fashion_sample.npz") as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]
    return tuple(
        Sample(id=sample_id(place, name), name=name, media_type="image/png", contents=png_of(images[labels == place][0]))
        for place, name in enumerate(known.classes)
    )


def folder_samples(folder: Path, *, limit: int = MAX_SAMPLES) -> tuple[Sample, ...]:
    """Read images of a folder, evenly spaced over its sorted files, into memory. Raises ValueError where it has none."""
    found: list[Sample] = []
    files = [folder / name for name in files_under(folder)]
    step = max(1, -(-len(files) // limit))
    for path in files[::step]:
        contents = path.read_bytes()
        try:
            read_header(contents)
        except BadImage:
            continue
        with Image.open(io.BytesIO(contents)) as image:
            media_type = image.get_format_mimetype() or "application/octet-stream"
        found.append(Sample(id=sample_id(len(found), path.stem), name=path.stem, media_type=media_type, contents=contents))
    if not found:
        raise ValueError(f"{folder} holds no images that can be read; name a folder that does, or leave the samples out")
    return tuple(found)


def sample_id(place: int, name: str) -> str:
    """Return an id that is safe in addresses: "3-ankle-boot"."""
    return f"{place}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')[:40]}".rstrip("-")


def png_of(pixels: np.ndarray) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def no_attention(model: Backbone) -> str:
    """Return the reason why a model has nothing to hover over."""
    return (
        f"{model_name(model)} has no attention over the whole image: its layers look at windows or neighbours only, so there "
        "is no patch to hover over. The maps below show what speaks for a class."
    )


def describe_attention(model: Backbone) -> ExplorerModelAnswer:
    """Return the size of a model's attention, or the reason why there is none to show."""
    size = attention_size(model)
    if size is None:
        return ExplorerModelAnswer(attention=None, why=no_attention(model))
    return ExplorerModelAnswer(attention=SizeAnswer(**asdict(size)), why=size.note)


def attention_bytes(
    model: Backbone,
    preprocessing: Preprocessing,
    contents: bytes,
    *,
    layers: Sequence[int] | None,
    max_pixels: int,
    gzipped: bool,
) -> bytes:
    """Return the attention message of an image file. Raises ValueError for one that can't be read, and for layers as
    `attention_message` does.
    """
    view = eval_view(contents, preprocessing, max_pixels=max_pixels)
    message = attention_message(model, normalise(view[None], preprocessing), layers=layers).encode()
    return gzip.compress(message, compresslevel=1, mtime=0) if gzipped else message


def explorer_router(models: Mapping[str, ServedModel], samples: Sequence[Sample]) -> APIRouter:
    """Return the endpoints that only the page needs."""
    router = APIRouter()
    answer = ExplorerAnswer(
        models={name: describe_attention(served.model) for name, served in models.items()},
        samples=[SampleAnswer(id=sample.id, name=sample.name) for sample in samples],
    )
    by_id = {sample.id: sample for sample in samples}

    @router.get("/v1/explorer", response_model=ExplorerAnswer, responses=problems())
    async def explorer() -> Response:
        """Attention of the models and samples, for the page."""
        return json_response(answer.model_dump())

    @router.get("/v1/samples/{sample_id}", responses=problems(404) | {200: {"content": {"image/*": {}}}})
    async def sample(sample_id: str) -> Response:
        """A sample of the page."""
        if sample_id not in by_id:
            raise Problem(404, "there is no sample of this name")
        return Response(by_id[sample_id].contents, media_type=by_id[sample_id].media_type)

    @router.post(
        "/v1/attention",
        responses=REFUSALS | {200: {"content": {"application/octet-stream": {}}}},
        openapi_extra=image_body(several=False),
    )
    async def attention(
        request: Request,
        model: ModelName = None,
        layers: Annotated[str | None, Query(description="layers as in 0,-1; all without")] = None,
    ) -> Response:
        """Attention of one image, of all heads and tokens, quantised: the layout is in `vitrail.serve.attention`."""
        engine = engine_of(request)
        served = engine.model(model)
        engine.require_explain_room(served)
        try:
            chosen = parse_layers(layers)
        except ValueError as error:
            raise Problem(422, str(error)) from None
        uploads = await read_images(request, engine.settings)
        if len(uploads) > 1:
            raise Problem(422, f"the attention of one image at a time is sent, and there are {len(uploads)}")
        gzipped = accepts_gzip(request.headers.get("accept-encoding", ""))
        body = await engine.run_beside(
            served,
            attention_bytes,
            served.model,
            served.predictor.preprocessing,
            uploads[0].contents,
            layers=None if chosen is None or chosen == "all" else chosen,
            max_pixels=engine.settings.max_pixels,
            gzipped=gzipped,
        )
        headers = {"Vary": "Accept-Encoding"} | ({"Content-Encoding": "gzip"} if gzipped else {})
        return Response(body, headers=headers, media_type="application/octet-stream")

    return router


def accepts_gzip(header: str) -> bool:
    """Return whether an Accept-Encoding header takes gzip."""
    for part in header.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    return False
