"""Images of a request: its body alone, the files of a form, or base64 in JSON. They stay in memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vitrail.serve.problems import Problem
from vitrail.serve.settings import ServeSettings
from vitrail.text import printable

FORM, JSON = "multipart/form-data", "application/json"
RAW = ("image/", "application/octet-stream")
_LONGEST_NAME = 200
_LONG_JSON_BYTES = 1 << 17
_LONGEST_HEADERS_BYTES = 8192


@dataclass(frozen=True)
class Upload:
    """One image file of a request."""

    name: str
    """Name that the client gave it, for the answer alone; "#3" for the fourth image without one."""
    contents: bytes


async def read_images(request: Request, settings: ServeSettings) -> list[Upload]:
    """Return the images of a request, at least one. Raises Problem for a body without, with too many, or of another kind."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith(RAW):
        uploads = [Upload("#0", await request.body())]
        if not uploads[0].contents:
            raise Problem(422, "the body is empty; send an image file")
        return uploads
    if kind == FORM:
        uploads = await _of_form(request, settings)
    elif kind == JSON:
        body = await request.body()
        aside = len(body) > _LONG_JSON_BYTES  # to parse a long one takes time that others would wait
        uploads = await asyncio.to_thread(_of_json, body, settings) if aside else _of_json(body, settings)
    else:
        shown = f'"{printable(kind[:80])}"' if kind else "missing"
        raise Problem(415, f"the content type is {shown}; send image/…, application/octet-stream, {FORM} or {JSON}")
    if not uploads:
        raise Problem(422, "there is no image in the body; send at least one")
    return uploads


def require_count(count: int, settings: ServeSettings) -> None:
    """Raise Problem for more images than a request may have."""
    if count > settings.max_images:
        raise Problem(413, f"{count} images are more than the {settings.max_images} of one request; send several requests")


class _InMemory(MultiPartParser):
    """Parser of forms whose files never go to the disk: the limit of the body is the limit of each.

    The headers of a part have a limit, too: the parser joins them piece by piece, which takes long where they are long.
    """

    spool_max_size = 1 << 62
    _header_bytes = 0

    def on_part_begin(self) -> None:
        """Begin to count a part's headers."""
        self._header_bytes = 0
        super().on_part_begin()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """Count bytes of a header's name."""
        self._count(end - start)
        super().on_header_field(data, start, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """Count bytes of a header's value."""
        self._count(end - start)
        super().on_header_value(data, start, end)

    def _count(self, more: int) -> None:
        self._header_bytes += more
        if self._header_bytes > _LONGEST_HEADERS_BYTES:
            raise MultiPartException("The headers of a part are too long.")


async def _of_form(request: Request, settings: ServeSettings) -> list[Upload]:
    """Return the files of a form, in order, under any field names."""
    parser = _InMemory(request.headers, request.stream(), max_files=settings.max_images, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            require_count(settings.max_images + 1, settings)
        raise Problem(400, f"the form can't be read: {error.message}; send the images as files") from None
    except (KeyError, UnicodeDecodeError, LookupError):
        raise Problem(400, "the form can't be read: its content type needs a boundary and a known charset") from None
    try:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        names = [(part.filename or "")[:_LONGEST_NAME] or f"#{place}" for place, part in enumerate(files)]
        return [Upload(name, part.file.read()) for name, part in zip(names, files, strict=True)]
    finally:
        await form.close()


def _of_json(body: bytes, settings: ServeSettings) -> list[Upload]:
    """Return the images of {"image": BASE64} or {"images": [BASE64, …]}."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON") from None
    keys = [key for key in ("image", "images") if isinstance(value, dict) and key in value]
    if len(keys) != 1:
        raise Problem(422, 'send {"image": BASE64} or {"images": [BASE64, …]}')
    texts = value[keys[0]] if keys == ["images"] else [value["image"]]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Problem(422, f'"{keys[0]}" must be base64 as text; send {{"image": BASE64}} or {{"images": [BASE64, …]}}')
    require_count(len(texts), settings)
    return [Upload(f"#{place}", _from_base64(text, place)) for place, text in enumerate(texts)]


def _from_base64(text: str, place: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, f"image #{place} is not base64; send the file's bytes in base64, without a data: prefix") from None
