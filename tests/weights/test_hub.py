"""Against a small Hub on the loopback: nothing here reaches the network."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import Client, Hub, sha256
from safetensors.torch import save

from vitrail.models import ViT
from vitrail.settings import Preprocessing
from vitrail.weights import load, save_model
from vitrail.weights.hub import (
    BESIDE,
    SUFFIXES,
    check,
    expected_sha256,
    fetch,
    looks_like_repo,
    pick_weights,
    push_to_hub,
)
from vitrail.weights.model_card import model_card


def weights(seed: int, size: int = 1000) -> bytes:
    return save({"pos_embed": torch.randn(size, generator=torch.Generator().manual_seed(seed))})


CONFIG = b'{"architecture": "vit_tiny"}'
CARD = b"---\nlicense: mit\n---\n"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> Iterator[dict[str, str]]:
    """For a client with an empty cache of its own; the Hub is itself again afterwards."""
    yield {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    hub.status, hub.stall, hub.cut_after = 0, False, []
    hub.asked.clear()


def said(result: list[str]) -> str:
    """The message of a ValueError, which is one line."""
    assert isinstance(result, list), f"no error, but {result}"
    (message,) = result
    assert "\n" not in message
    return message


# --------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize(
    "text",
    [
        "timm/vit_small_patch16_224.augreg_in21k",
        "google/vit-base-patch16-224",
        "facebook/dinov2-base@main",
        "facebook/dinov2-base@refs/pr/1",
        "hf-hub:timm/vit_base_patch16_224",
        "hf_hub:timm/vit_base_patch16_224@v1.0",
        "hf-hub:B/16",
        "hf://timm/vit_base_patch16_224",
        "https://huggingface.co/timm/vit_base_patch16_224/",
        "https://huggingface.co/timm/vit_base_patch16_224/tree/refs%2Fpr%2F1",
        "a/b",
    ],
)
def test_written_like_a_repository(text: str) -> None:
    assert looks_like_repo(text)


@pytest.mark.parametrize(
    "text",
    [
        "B/16",
        "Ti/4",
        "S+/16",
        "b/16",
        "X/999",
        "vit_base_patch16_224",
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "./a/b",
        "../a",
        "./a",
        "/a/b",
        "~/b",
        "a/../b",
        "a/b..c",
        "a/b--c",
        "a/b.git",
        "a b/c",
        "a/b c",
        "a/b\n",
        "runs/model.safetensors",
        "runs/jx_vit.pth",
        "runs/B_16.npz",
        "https://example.org/a/b",
        "https://huggingface.co/a",
        "https://huggingface.co/a/b/blob/main/model.safetensors",
        "C:\\a/b",
        "a/é",
    ],
)
def test_not_written_like_a_repository(text: str) -> None:
    assert not looks_like_repo(text)


def test_names_that_are_none_are_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'^"a/b/c" is not the name of a repository on the Hub; it is written "owner/name" or'):
        fetch("a/b/c")
    with pytest.raises(ValueError, match=r'^"a/b@v1" names revision "v1", and revision "v2" is asked for; give one of them$'):
        fetch("a/b@v1", revision="v2")


# --------------------------------------------------------------------------------------------------------------------
# Which weights


@pytest.mark.parametrize(
    ("names", "picked"),
    [
        (["pytorch_model.bin", "model.safetensors", "tf_model.h5"], "model.safetensors"),
        (["pytorch_model.bin", "model.safetensors.index.json", "model-1.safetensors"], "model.safetensors.index.json"),
        (["open_clip_model.safetensors", "pytorch_model.bin"], "open_clip_model.safetensors"),
        (["open_clip_pytorch_model.bin", "pytorch_model.bin"], "pytorch_model.bin"),
        (["pytorch_model.bin.index.json", "open_clip_pytorch_model.bin"], "pytorch_model.bin.index.json"),
        (["open_clip_pytorch_model.bin", "other.safetensors"], "open_clip_pytorch_model.bin"),
        (["dino.pth", "B_16.npz"], "B_16.npz"),
        (["a.pt", "training_args.bin", "optimizer.pt", "rng_state_0.pth", "scheduler.bin"], "a.pt"),
        (["sub/model.safetensors", "config.json"], None),
        ([], None),
    ],
)
def test_one_set_of_weights_is_picked(names: list[str], picked: str | None) -> None:
    assert pick_weights(names) == picked


def test_the_reader_takes_what_was_fetched() -> None:
    read = pytest.importorskip("vitrail.weights.read")
    assert read.SUFFIXES[: len(SUFFIXES)] == SUFFIXES


def test_several_sets_are_a_question() -> None:
    with pytest.raises(ValueError, match=r"^there are several files of weights \(a.safetensors, b.safetensors\); download one"):
        pick_weights(["b.safetensors", "a.safetensors", "c.npz"])


# --------------------------------------------------------------------------------------------------------------------
# Down


def test_what_is_needed_comes_and_no_more(hub: Hub, client: Client, env: dict[str, str]) -> None:
    body = weights(0)
    beside = {"config.json": CONFIG, "README.md": CARD, "preprocessor_config.json": b"{}"}
    others = {"pytorch_model.bin": b"x", "tf_model.h5": b"x", "onnx/model.onnx": b"x"}
    commit = hub.add("timm/vit", {"model.safetensors": body, **beside, **others})
    folder, again, digest, damaged = client.run(
        ("fetch", "timm/vit"),
        ("fetch", "hf-hub:timm/vit@main"),
        ("expected_sha256", f"{env['HF_HOME']}/hub/models--timm--vit/snapshots/{commit}"),
        ("check", f"{env['HF_HOME']}/hub/models--timm--vit/snapshots/{commit}", sha256(b"")),
        **env,
        HF_TOKEN="hf_secret",
    )
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == {"model.safetensors": body, **beside}
    assert Path(folder) == Path(env["HF_HOME"]) / "hub/models--timm--vit/snapshots" / commit
    assert again == folder
    assert digest == sha256(body)
    assert "model.safetensors in " in said(damaged)
    assert {each.token for each in hub.asked_for("/timm/vit")} == {"hf_secret"}
    (gone_to_the_cdn,) = [each for each in hub.asked_for("/cdn/") if each.method == "GET"]
    assert gone_to_the_cdn.token == "", "the token went to another host"
    last = [each.path for each in hub.asked[[each.path for each in hub.asked].index(gone_to_the_cdn.path) :]]
    assert [path for path in last if path.startswith("/api/models")] == ["/api/models/timm/vit/revision/main"]

    hub.asked.clear()
    assert client.run(("fetch", "timm/vit"), **env, HF_HUB_OFFLINE="1") == [folder]
    assert hub.asked == []


def test_a_model_that_is_in_the_cache_costs_one_question(hub: Hub, client: Client, env: dict[str, str]) -> None:
    hub.add("o/warm", {"model.safetensors": weights(1), "config.json": CONFIG})
    client.run(("fetch", "o/warm"), **env)
    hub.asked.clear()
    client.run(("fetch", "o/warm"), **env)
    assert [(each.method, each.path) for each in hub.asked if "o/warm" in each.path] == [("GET", "/api/models/o/warm")]
    assert not hub.asked_for("/cdn/")


def test_revisions(hub: Hub, client: Client, env: dict[str, str]) -> None:
    old = hub.add("o/moved", {"model.safetensors": weights(2)})
    hub.repos["o/moved"].refs["v1"] = old
    new = hub.add("o/moved", {"model.safetensors": weights(3)})
    main, tag, commit, none = client.run(
        ("fetch", "o/moved"),
        ("fetch", "o/moved", {"revision": "v1"}),
        ("fetch", f"o/moved@{old}"),
        ("fetch", "o/moved@v9"),
        **env,
    )
    assert Path(main).name == new
    assert Path(tag).name == Path(commit).name == old
    assert (Path(tag) / "model.safetensors").read_bytes() == weights(2)
    assert (
        said(none)
        == f'"o/moved" has no revision "v9"; take a branch or a tag that {hub.url}/o/moved/tree/main lists, or a commit'
    )
    offline = client.run(("fetch", "o/moved@v1"), ("fetch", "o/moved"), ("fetch", "o/moved@v2"), **env, HF_HUB_OFFLINE="1")
    assert offline[:2] == [tag, main]
    assert said(offline[2]).startswith("HF_HUB_OFFLINE is set, and the cache ")


def test_a_branch_that_moves_on_is_followed(hub: Hub, client: Client, env: dict[str, str]) -> None:
    hub.add("o/branch", {"model.safetensors": weights(4), "config.json": CONFIG})
    first = client.run(("fetch", "o/branch"), **env)
    commit = hub.add("o/branch", {"model.safetensors": weights(5), "config.json": CONFIG})
    (second,) = client.run(("fetch", "o/branch"), **env)
    assert Path(second).name == commit
    assert client.run(("fetch", "o/branch"), **env, HF_HUB_OFFLINE="1") == [second] != first


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_shards(hub: Hub, client: Client, env: dict[str, str], kind: str) -> None:
    stem, suffix = kind.split(".")
    names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    index = {"weight_map": {"a": names[1], "b": names[0], "c": names[1]}}
    files = {f"{kind}.index.json": json.dumps(index).encode(), names[0]: weights(6), names[1]: weights(7)}
    repo = f"o/shards-{suffix}"
    hub.add(repo, files)
    hub.add(f"{repo}-less", {name: body for name, body in files.items() if name != names[1]})
    hub.add(f"{repo}-odd", {f"{kind}.index.json": b'{"weight_map": []}'})
    folder, less, odd = client.run(("fetch", repo), ("fetch", f"{repo}-less"), ("fetch", f"{repo}-odd"), **env)
    assert {path.name for path in Path(folder).iterdir()} == set(files)
    assert expected_sha256(folder) == sha256((sha256(weights(6)) + sha256(weights(7))).encode())
    alone = Path(folder) / f"{kind}.index.json"
    alone.write_text(json.dumps({"weight_map": {"a": names[0]}}))
    assert expected_sha256(folder) == sha256(weights(6))
    alone.write_bytes(files[alone.name])
    assert f'lacks "{names[1]}", which its {kind}.index.json names' in said(less)
    assert "is no index of shards (" in said(odd)
    (Path(folder) / names[1]).unlink()
    assert "does not have" in said(client.run(("fetch", repo), **env, HF_HUB_OFFLINE="1")[0])


def test_repositories_that_can_t_be_had(hub: Hub, client: Client, env: dict[str, str]) -> None:
    files = {"model.safetensors": weights(8), "config.json": CONFIG}
    hub.add("o/gated", files, gated=True)
    hub.add("o/private", files, private=True)
    hub.add("o/text", {"README.md": CARD, "tokenizer.json": b"{}", "tf_model.h5": b""})
    hub.add("o/several", {"a.safetensors": weights(9), "b.safetensors": weights(10)})
    calls = [("fetch", f"o/{name}") for name in ("gated", "private", "missing", "text", "several")]
    stranger = [said(each) for each in client.run(*calls, **env)]
    way = "`hf auth login`, or set HF_TOKEN"
    assert stranger[0] == f'"o/gated" is gated; accept its licence on {hub.url}/o/gated, then log in: {way}'
    for name, message in zip(("private", "missing"), stranger[1:3], strict=True):
        assert message == (
            f'there is no repository "o/{name}" at {hub.url}, or it is private; '
            f"check the name, or give a token for a private one: {way}"
        )
    assert stranger[3].startswith(
        '"o/text" has no weights that can be read here, only README.md, tf_model.h5, tokenizer.json; '
    )
    assert stranger[4].startswith('"o/several": there are several files of weights (a.safetensors, b.safetensors); ')

    friend = client.run(*calls, **env, HF_TOKEN="hf_secret")
    assert all((Path(folder) / "model.safetensors").exists() for folder in friend[:2])
    assert "there is no repository" in said(friend[2])
    other = client.run(*calls[:1], **env | {"HF_HOME": env["HF_HOME"] + "2"}, HF_TOKEN="hf_other")
    assert '"o/gated" is gated' in said(other[0])


@pytest.mark.parametrize("status", [403, 418])
def test_a_hub_that_refuses(hub: Hub, client: Client, env: dict[str, str], status: int) -> None:
    hub.status = status
    message = said(client.run(("fetch", "o/any"), **env)[0])
    assert message.startswith(f'{hub.url} {"refuses access to" if status == 403 else "has no proper answer about"} "o/any" (')
    assert str(status) in message


def test_no_way_to_the_hub(hub: Hub, client: Client, env: dict[str, str]) -> None:
    """Refused, broken and forbidden: what is in the cache opens, and the rest says what to do."""
    hub.add("o/known", {"model.safetensors": weights(11)})
    (folder,) = client.run(("fetch", "o/known"), **env)
    with socket.socket() as taken:  # bound but not listening: refused
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        known, unknown = client.run(("fetch", "o/known"), ("fetch", "o/unknown"), **env | {"HF_ENDPOINT": nobody})
    assert known == folder
    assert re.match(rf"{nobody} can't be reached \(.*refused.*\), and ", said(unknown))
    assert said(unknown).endswith(
        f'and the cache {env["HF_HOME"]}/hub does not have "o/unknown", or not all of it; set HF_ENDPOINT to a mirror, or '
        "HF_HOME to a cache that was filled elsewhere (with HF_HUB_OFFLINE=1), or download the files elsewhere and load their "
        "folder"
    )
    known, unknown = client.run(("fetch", "o/known"), ("fetch", "o/unknown"), **env, HF_HUB_OFFLINE="1")
    assert known == folder
    assert said(unknown).startswith(f'HF_HUB_OFFLINE is set, and the cache {env["HF_HOME"]}/hub does not have "o/unknown", ')
    hub.status = 503
    known, unknown = client.run(("fetch", "o/known"), ("fetch", "o/unknown"), **env)
    assert known == folder
    assert "503" in said(unknown)


def test_a_wrong_body_is_thrown_away(hub: Hub, client: Client, env: dict[str, str]) -> None:
    body = weights(12)
    hub.add("o/wrong", {"model.safetensors": body}, wrong={"model.safetensors": body[:-1] + b"!"})
    (wrong,) = client.run(("fetch", "o/wrong"), **env)
    assert said(wrong) == (
        f'model.safetensors of "o/wrong" arrived damaged: its sha256 is {sha256(body[:-1] + b"!")}, and the Hub says '
        f"{sha256(body)}; it was thrown away, load again"
    )
    assert [path for path in Path(env["HF_HOME"]).rglob("*") if sha256(body) in path.name and path.suffix != ".lock"] == []
    hub.repos["o/wrong"].wrong.clear()
    (folder,) = client.run(("fetch", "o/wrong"), **env)
    assert (Path(folder) / "model.safetensors").read_bytes() == body


def test_a_short_body_is_no_file(hub: Hub, client: Client, env: dict[str, str]) -> None:
    body = weights(13)
    hub.add("o/short", {"model.safetensors": body}, wrong={"model.safetensors": body[:-100]})
    short, again = client.run(("fetch", "o/short"), ("fetch", "o/short"), **env)
    for each in (short, again):
        assert said(each).startswith('model.safetensors of "o/short" did not arrive whole (')
        assert said(each).endswith("); load again, or download it elsewhere and load the file")
    assert "does not have" in said(client.run(("fetch", "o/short"), **env, HF_HUB_OFFLINE="1")[0])


def test_a_broken_line_goes_on_where_it_broke(hub: Hub, client: Client, env: dict[str, str]) -> None:
    body = weights(14, size=3_000_000)  # huggingface_hub writes what came in pieces of 10 MiB
    hub.add("o/broken", {"model.safetensors": body})
    hub.cut_after = [11 << 20]
    _, folder = client.run(("fetch", "o/broken"), ("fetch", "o/broken"), **env)  # before 1.0, it goes on in the next call
    assert (Path(folder) / "model.safetensors").read_bytes() == body
    first, second = (each.range for each in hub.asked_for("/cdn/") if each.method == "GET")
    assert first == ""
    assert re.fullmatch(r"bytes=1\d{7}-", second)


def test_killed_in_the_middle_then_started_again(hub: Hub, client: Client, env: dict[str, str]) -> None:
    body = weights(15, size=100_000)
    hub.add("o/killed", {"config.json": CONFIG, "model.safetensors": body})
    hub.stall = True
    pid = client.start(("fetch", "o/killed"), **env)
    assert hub.stalled.wait(30)
    os.kill(pid, signal.SIGKILL)
    assert client.result() == []
    hub.stall = False
    hub.go_on.set()
    assert not list(Path(env["HF_HOME"]).rglob("model.safetensors"))
    assert "does not have" in said(client.run(("fetch", "o/killed"), **env, HF_HUB_OFFLINE="1")[0])
    (folder,) = client.run(("fetch", "o/killed"), **env)
    assert (Path(folder) / "model.safetensors").read_bytes() == body
    assert client.run(("fetch", "o/killed"), **env, HF_HUB_OFFLINE="1") == [folder]


def test_a_file_that_was_damaged_in_the_cache_is_named(hub: Hub, client: Client, env: dict[str, str]) -> None:
    body = weights(16)
    hub.add("o/old", {"model.safetensors": body})
    (folder,) = client.run(("fetch", "o/old"), **env)
    path = Path(folder) / "model.safetensors"
    check(folder, sha256(body))
    check(folder, None)
    path.resolve().write_bytes(body[:-1] + b"!")
    with pytest.raises(ValueError, match=r"^model.safetensors in .* is damaged: its sha256 is ") as error:
        check(folder, sha256(body[:-1] + b"!"))
    assert str(error.value).endswith(f"and the Hub says {sha256(body)}; delete {path.resolve()} and load again")
    path.resolve().write_bytes(body[:-1])
    message = said(client.run(("fetch", "o/old"), **env)[0])
    assert message == (
        f"model.safetensors in {folder} is damaged: it has {len(body) - 1:,} bytes, and the Hub says {len(body):,}; "
        f"delete {path.resolve()} and load again"
    )
    path.resolve().unlink()  # what the line says
    assert client.run(("fetch", "o/old"), **env) == [folder]
    assert path.read_bytes() == body


def test_a_cache_without_links_is_hashed(hub: Hub, client: Client, env: dict[str, str]) -> None:
    body = weights(17)
    hub.add("o/copied", {"model.safetensors": body})
    (folder,) = client.run(("fetch", "o/copied"), **env)
    path = Path(folder) / "model.safetensors"
    blob = path.resolve()
    path.unlink()
    shutil.move(blob, path)
    assert client.run(("fetch", "o/copied"), ("expected_sha256", folder), **env) == [folder, None]
    path.write_bytes(body[:-1] + b"!")
    assert "arrived damaged" in said(client.run(("fetch", "o/copied"), **env)[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written(hub: Hub, client: Client, env: dict[str, str]) -> None:
    hub.add("o/any", {"model.safetensors": weights(18)})
    Path(env["HF_HOME"]).mkdir(mode=0o500)
    assert "can't be used (" in said(client.run(("fetch", "o/any"), **env)[0])


def test_a_cache_in_whose_place_is_a_file(hub: Hub, client: Client, env: dict[str, str]) -> None:
    hub.add("o/any", {"model.safetensors": weights(18)})
    Path(env["HF_HOME"]).write_text("in the way")
    assert "can't be used (" in said(client.run(("fetch", "o/any"), **env)[0])


def test_a_server_that_is_no_hub(hub: Hub, client: Client, env: dict[str, str]) -> None:
    hub.status = 200  # and an empty page: the answer of a network that wants to be logged in to
    message = said(client.run(("fetch", "o/page"), **env)[0])
    assert message.startswith(f"{hub.url} can't be reached (")
    assert 'does not have "o/page"' in message


# --------------------------------------------------------------------------------------------------------------------
# Up


def run_folder(folder: Path, **fields: Any) -> Path:
    base = {
        "img_size": (8, 12),
        "patch_size": 4,
        "in_channels": 1,
        "embed_dim": 8,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 3,
    }
    torch.manual_seed(0)
    model = ViT(**base | fields)
    model.preprocessing = Preprocessing(img_size=(8, 12), in_channels=1, mean=(0.2,), std=(0.31,))
    model.classes = ("cat", "dog | wolf", "naïve owl")
    folder.mkdir()
    save_model(model, folder, data="/data/ann/pictures/animals")
    (folder / "config.yaml").write_text("# all\ndata:\n  path: /data/ann/pictures/animals\n  workers: 2\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step_1").write_text("large")
    return folder


def scored(folder: Path) -> Path:
    scores = {"data": "animals", "split": "test", "count": 2000, "top1": 0.898, "top1_interval": [0.884, 0.911]}
    (folder / "evaluation.json").write_text(json.dumps(scores))
    (folder / "confusion.png").write_bytes(b"a picture")
    return folder


def test_the_card_says_what_the_run_knows(tmp_path: Path) -> None:
    folder = scored(run_folder(tmp_path / "run"))
    assert (
        model_card(folder)
        == """\
---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- vision-transformer
- vitrail
- timm
metrics:
- accuracy
model-index:
- name: run
  results:
  - task:
      type: image-classification
    dataset:
      name: animals
      type: animals
      split: test
    metrics:
    - type: accuracy
      value: 0.898
      name: accuracy
---

# ViT with patch 4 for animals

A Vision Transformer, trained with Vitrail.

| | |
| --- | --- |
| model | ViT with patch 4, 2 blocks of width 8, 2 heads |
| images | 8x12 pixels, 1 channel (grey) |
| pixels | from 0 to 1, minus 0.2, over 0.31 |
| classes | 3: cat, dog \\| wolf, naïve owl |
| data | animals |
| accuracy | 89.8% of 2,000 images, 95 % interval 88.4% to 91.1% (animals, test) |

![which class is taken for which](confusion.png)

## Use

```python
import vitrail

model = vitrail.load("OWNER/NAME")  # model.preprocessing says what it takes, model.classes what it gives
```

The same in timm:

```python
import timm

model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()
```
"""
    )


def test_the_card_of_a_model_that_timm_lacks(tmp_path: Path) -> None:
    config_of = {"embed_dim": 192, "depth": 12, "num_heads": 3, "stem": "conv"}
    card = model_card(run_folder(tmp_path / "run", **config_of), repo_id="o/n")
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "vitrail"
    assert "timm" not in card
    assert "# ViT-Ti+/4 for animals\n" in card
    assert "accuracy" not in card
    assert 'vitrail.load("o/n")' in card


def test_the_card_of_a_model_without_a_head_has_the_scores_of_its_embedding(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", num_classes=0)
    scores = {"count": 40, "effective_rank": 12.345, "data": "album", "split": "val"}
    for headline, said in (
        (
            {"name": "knn_accuracy", "value": 0.75, "interval": [0.6, 0.86]},
            "| knn accuracy | 75.0% of 40 images, 95 % interval 60.0% t",
        ),
        (
            {"name": "effective_rank", "value": 12.345, "interval": [11, 13.5]},
            "| effective rank | 12.3 of 40 images, 95 % interval 11.0",
        ),
    ):
        (folder / "evaluation.json").write_text(json.dumps({**scores, "headline": headline}))
        card = model_card(folder)
        assert said in card
        assert "(album, val)" in card
        assert "image-feature-extraction" in card


def test_the_card_names_the_licence_where_it_is_known(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "CC-BY-NC-4.0"
    (folder / "config.json").write_text(json.dumps(config))
    assert yaml.safe_load(model_card(folder).split("---")[1])["license"] == "cc-by-nc-4.0"
    config["vitrail"]["licence"] = "apache-2.0"
    (folder / "config.json").write_text(json.dumps(config))
    assert "license: apache-2.0\n" in model_card(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"top1_interval": [1]}'])
def test_scores_that_are_none_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluation.json can't be read \(.+\); ") as error:
        model_card(folder)
    assert "\n" not in str(error.value)


def test_a_run_goes_up_and_comes_down_again(hub: Hub, client: Client, env: dict[str, str], tmp_path: Path) -> None:
    folder = scored(run_folder(tmp_path / "run"))
    url, again, branch, down, side = client.run(
        ("push_to_hub", str(folder), "ann/animals", {"private": True, "token": hub.token}),
        ("push_to_hub", str(folder), "ann/animals", {"token": hub.token}),
        ("push_to_hub", str(folder), "ann/animals", {"token": hub.token, "revision": "try"}),
        ("fetch", "ann/animals"),
        ("fetch", "ann/animals@try"),
        **env,
        HF_TOKEN=hub.token,
    )
    assert url == again == f"{hub.url}/ann/animals"
    assert branch == f"{url}/tree/try"
    repo = hub.repos["ann/animals"]
    assert repo.private
    files = repo.commits[repo.refs["main"]]
    assert sorted(files) == ["README.md", "config.json", "config.yaml", "confusion.png", "evaluation.json", "model.safetensors"]
    assert files["README.md"].decode() == model_card(folder, repo_id="ann/animals")
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not [name for name, body in files.items() if b"/data/" in body]
    assert yaml.safe_load(files["config.yaml"]) == {"data": {"path": "animals", "workers": 2}}
    assert sorted(path.name for path in Path(down).iterdir()) == ["README.md", "config.json", "model.safetensors"]
    ours, theirs = load(folder), load(down)
    assert ours.config == theirs.config
    assert ours.preprocessing == theirs.preprocessing
    assert ours.classes == theirs.classes
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert (Path(side) / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert set(BESIDE) >= {"README.md", "config.json"}


def test_a_card_of_one_s_own_goes_up_as_it_is(hub: Hub, client: Client, env: dict[str, str], tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "README.md").write_bytes(CARD)
    client.run(("push_to_hub", str(folder), "ann/own", {"token": hub.token}), **env)
    repo = hub.repos["ann/own"]
    assert repo.commits[repo.refs["main"]]["README.md"] == CARD


def test_what_can_t_go_up(hub: Hub, client: Client, env: dict[str, str], tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    calls = [("push_to_hub", str(folder), "ann/refused")]
    (refused,) = client.run(*calls, **env)
    assert said(refused).startswith(f'{hub.url} does not let you write to "ann/refused" (')
    (offline,) = client.run(*calls, **env, HF_HUB_OFFLINE="1")
    assert said(offline).startswith(f'{folder} was not uploaded to "ann/refused" at {hub.url} (')
    assert "ann/refused" not in hub.repos

    with pytest.raises(ValueError, match=r'^"B/16" is not the name of a repository'):
        push_to_hub(folder, "B/16")
    with pytest.raises(ValueError, match=r'nowhere" does not exist; '):
        push_to_hub(tmp_path / "nowhere", "ann/run")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + b"!")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its sha256 is not the one in config.json; restore"):
        push_to_hub(folder, "ann/run")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing; restore it from a copy"):
        push_to_hub(folder, "ann/run")


# --------------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_cache_knows_no_hash(tmp_path: Path) -> None:
    assert expected_sha256(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(weights(19))
    assert expected_sha256(tmp_path) is None
    check(tmp_path, sha256(b""))


def test_the_help_does_not_pay_for_huggingface_hub() -> None:
    script = "import sys, vitrail, vitrail.weights.hub; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
