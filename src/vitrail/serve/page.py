"""The files of the page, read once: no path of a request touches the file system."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vitrail.serve.problems import problem_response

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"


@dataclass(frozen=True)
class PageFile:
    """One file of the page."""

    contents: bytes
    media_type: str
    etag: str


def read_files(folder: Path) -> dict[str, PageFile]:
    """Read the files below a folder, by their paths in URLs; none where it has no index.html."""
    if not (folder / INDEX).is_file():
        return {}
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            contents = path.read_bytes()
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            kind = "text/javascript" if path.suffix in (".js", ".mjs") else kind
            etag = f'"{hashlib.sha256(contents).hexdigest()[:32]}"'
            files[f"/{path.relative_to(folder).as_posix()}"] = PageFile(contents, kind, etag)
    return files | {"/": files[f"/{INDEX}"]}


class Page:
    """ASGI app of files in memory."""

    def __init__(self, files: Mapping[str, PageFile]) -> None:
        self.files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a file, 304 where the browser has it, 404 or 405."""
        await self._answer(Request(scope))(scope, receive, send)

    def _answer(self, request: Request) -> Response:
        file = self.files.get(request.scope["path"])
        if file is None:
            return problem_response(404, "there is nothing at this address")
        if request.method not in ("GET", "HEAD"):
            return problem_response(405, "this is a file; GET it", headers={"Allow": "GET, HEAD"})
        headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.contents, headers=headers, media_type=file.media_type)
