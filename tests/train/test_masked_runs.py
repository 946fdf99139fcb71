"""`vitrail.pretrain` with a mask token: run folders, and runs that are stopped and resumed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import vitrail
from interrupts import interrupt_at
from vitrail.tasks.codebook import Codebook
from vitrail.train import checkpoint
from vitrail.train.run import Run

TINY = {"name": "Ti/7", "embed_dim": 12, "num_heads": 2, "depth": 2, "pool": "avg", "class_token": False}
RANDOM: dict[str, Any] = {
    "model": {**TINY, "proj_drop_rate": 0.2, "drop_path_rate": 0.3},
    "optim": {"name": "muon"},
    "train": {"steps": 5, "batch_size": 16, "device": "cpu", "precision": "fp32", "ema_decay": 0.9, "eval_every": 1.0},
    "data": {"workers": 0},
    "beit": {"codebook": 12},
}


def pretrain(method: str, out: Path, console: Console | None = None, **over: Any) -> Run:
    """Some steps of a tiny model."""
    console = console or Console(file=io.StringIO(), force_terminal=False)
    return vitrail.pretrain("mnist", method=method, out=out, console=console, **RANDOM | over)


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize("method", ["simmim", "beit"])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbone, head, masks, codebook and scores; the codebook is not fitted again."""
    said = io.StringIO()
    straight = pretrain(method, tmp_path / "straight", Console(file=said, width=300))
    with monkeypatch.context() as patched:
        interrupt_at(patched, 3)
        with pytest.raises(KeyboardInterrupt, match=r"^step 3 is saved; go on with `vitrail resume"):
            pretrain(method, tmp_path / "broken")
    torch.manual_seed(12345)  # whatever the process drew since must not matter
    monkeypatch.setattr(Codebook, "fit", lambda *args, **options: pytest.fail("it was fitted"))
    resumed = vitrail.resume(tmp_path / "broken", console=Console(file=io.StringIO()))
    assert (resumed.steps, resumed.task) == (5, method)
    for name in ("model.safetensors", "evaluation.json"):
        assert (resumed.folder / name).read_bytes() == (straight.folder / name).read_bytes(), name
    [mine], [whole] = (checkpoint.list_complete(run.folder / "checkpoints")[-1:] for run in (resumed, straight))
    for name in ("model", "ema", "companions", "optimizer"):
        assert (mine / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes(), name
    companions = load_file(mine / "companions.safetensors")
    pictures = (straight.folder / "reconstructions").exists()
    if method == "simmim":
        assert pictures
        assert companions.keys() == {"head.mask_token", "head.proj.weight", "head.proj.bias"}
    else:
        assert not pictures
        assert companions["codebook.centers"].shape == (12, 49)
        assert "fitting 12 tokens to patches of 57 images; reading training images" in said.getvalue()
        assert "of 12 tokens are in use on 399 patches, with a perplexity of " in said.getvalue()
    logged = [json.loads(line) for line in (straight.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("val_knn_accuracy" in line for line in logged)
    assert vitrail.load(straight.folder)(torch.zeros(1, 1, 28, 28)).shape == (1, 12)


@pytest.mark.usefixtures("idx_set")
def test_a_run_is_the_tokenizer_of_the_next(tmp_path: Path) -> None:
    first = pretrain("beit", tmp_path / "first", train={**RANDOM["train"], "steps": 2})
    tokens = {"codebook": 5, "tokenizer": os.path.relpath(first.folder)}
    second = pretrain("beit", tmp_path / "second", train={**RANDOM["train"], "steps": 2}, beit=tokens)
    assert f"tokenizer: {first.folder.resolve()}" in (second.folder / "config.yaml").read_text()
    [last] = checkpoint.list_complete(second.folder / "checkpoints")[-1:]
    assert load_file(last / "companions.safetensors")["codebook.centers"].shape == (5, 12)
