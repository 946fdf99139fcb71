"""Errors as problem documents (RFC 9457): one line each, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from vitrail.text import one_line

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that gets no answer but a status, with the reason in one line."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    def response(self) -> Response:
        """Return the answer."""
        return problem_response(self.status, self.detail, headers=self.headers)


def problem_response(status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem document."""
    title = HTTPStatus(status).phrase
    fields = {"type": "about:blank", "title": title, "status": status, "detail": one_line(detail) or title}
    return Response(json.dumps(fields), status, headers=headers, media_type=MEDIA_TYPE)
