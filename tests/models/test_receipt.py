"""A receipt says everything in ten lines, and all of it when asked."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.models.receipt import Entry, Receipt, Status
from vitrail.text import is_shown

STATUSES: tuple[Status, ...] = get_args(Status)


def receipt(*entries: Entry, **fields: object) -> Receipt:
    known = {"origin": "timm", "file": "weights.safetensors", "sha256": None, "licence": None}
    return Receipt(**{**known, **fields}, entries=entries)  # type: ignore[arg-type]


FULL = receipt(
    Entry("blocks.0.norm1.weight", "exact", 48),
    Entry("blocks.0.attn.qkv.weight", "exact", 6912),
    Entry("pos_embed", "resized", 2928, "14x14 -> 6x10"),
    Entry("patch_embed.proj.weight", "adapted", 61440, "3 -> 5 channels"),
    Entry("head.weight", "new", 336, head=True),
    Entry("head.bias", "new", 7, head=True),
    Entry("head.weight", "dropped", 48000, head=True),
    Entry("decoder.0.weight", "dropped", 100),
    Entry("decoder.0.bias", "dropped", 10),
    Entry("decoder.1.weight", "dropped", 100),
    sha256="0123456789abcdef" * 4,
    licence="apache-2.0",
    assumed=("3 heads, as published at width 48",),
    notes=("took model_ema; the file also holds model",),
    preprocessing="timm's pretrained_cfg",
)


def test_ten_lines() -> None:
    assert (
        str(FULL)
        == """\
timm · weights.safetensors
  sha256 0123456789abcdef… · licence apache-2.0
  exact    2 tensors, 6,960 parameters (9.7%)
  resized  1 tensor, 2,928 parameters (4.1%): pos_embed 14x14 -> 6x10
  adapted  1 tensor, 61,440 parameters (85.7%): patch_embed.proj.weight 3 -> 5 channels
  new      2 tensors, 343 parameters (0.5%): head.weight, head.bias
  dropped  4 tensors, 48,210 parameters: head.weight, decoder.0.weight, decoder.0.bias …
  assumed  3 heads, as published at width 48
  note     took model_ema; the file also holds model
  images   timm's pretrained_cfg"""
    )


def test_what_is_not_known_is_not_a_line() -> None:
    assert (
        str(receipt(Entry("norm.weight", "exact", 48)))
        == """\
timm · weights.safetensors
  licence not stated
  exact    1 tensor, 48 parameters (100.0%)"""
    )


def test_verbose_lists_every_tensor() -> None:
    short, _, rows = FULL.verbose().partition("\n\n")
    assert short == str(FULL)
    assert rows.splitlines()[2:5] == [
        "  resized  pos_embed                        2,928  14x14 -> 6x10",
        "  adapted  patch_embed.proj.weight         61,440  3 -> 5 channels",
        "  new      head.weight                        336",
    ]
    assert len(rows.splitlines()) == len(FULL.entries)


def test_the_backbone_s_share() -> None:
    """Heads do not count, what is dropped neither, and what the file's code computes is not missing."""
    assert FULL.backbone_share == 1
    half = (
        Entry("a", "exact", 10),
        Entry("b", "new", 10),
        Entry("head.weight", "new", 99, head=True),
        Entry("c", "dropped", 99),
    )
    assert receipt(*half).backbone_share == 0.5
    assert receipt(Entry("a", "exact", 10), Entry("b", "new", 10, "zero: the file has none")).backbone_share == 1
    assert receipt().backbone_share == 0


@pytest.mark.parametrize("status", STATUSES)
def test_fresh_is_what_is_new_without_a_word(status: Status) -> None:
    assert Entry("a", status, 1).fresh == (status == "new")
    assert not Entry("a", status, 1, "computed").fresh


def test_json() -> None:
    told = json.loads(json.dumps(FULL.to_dict()))
    assert told["parameters"] == {"exact": 6960, "resized": 2928, "adapted": 61440, "new": 343, "dropped": 48210}
    assert told["tensors"][0] == {"name": "pos_embed", "status": "resized", "parameters": 2928, "note": "14x14 -> 6x10"}
    assert {entry["status"] for entry in told["tensors"]} == {"resized", "adapted", "new", "dropped"}
    assert (told["sha256"], told["licence"], told["file"]) == (FULL.sha256, "apache-2.0", "weights.safetensors")


WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
ENTRIES = st.lists(
    st.builds(Entry, WORDS, st.sampled_from(STATUSES), st.integers(0, 10**10), WORDS, st.booleans()), max_size=40
)


@given(ENTRIES, WORDS, st.lists(WORDS, max_size=9), st.lists(WORDS, max_size=9), WORDS)
def test_at_most_ten_lines_whatever_happens(
    entries: list[Entry], file: str, assumed: list[str], notes: list[str], images: str
) -> None:
    made = receipt(*entries, file=file, sha256="f" * 64, assumed=tuple(assumed), notes=tuple(notes), preprocessing=images)
    lines = str(made).splitlines()
    assert len(lines) <= 10
    assert all(len(line) <= 400 and all(map(is_shown, line)) for line in lines)
    assert len(made.verbose().splitlines()) == len(lines) + (1 + len(entries) if entries else 0)
    assert sum(made.total(status) for status in STATUSES) == sum(entry.parameters for entry in entries)
    assert 0 <= made.backbone_share <= 1
