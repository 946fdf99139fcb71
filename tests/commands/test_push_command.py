"""`vitrail push`: where a run went."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import Typed


def test_push_prints_where_it_went(vitrail: Typed, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("vitrail.weights.push_to_hub", lambda *args, **more: asked.append((args, more)) or "https://hub/me/it")
    assert vitrail("push", run, "me/it", "--private") == (0, "https://hub/me/it\n", "")
    assert asked == [((str(run), "me/it"), {"private": True, "revision": None})]
