from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vitrail
from vitrail.check import check
from vitrail.check.features import (
    SetEmbeddings,
    close_pairs,
    embed_all,
    find_label_suspects,
    find_unlike_others,
    neighbours_of,
)
from vitrail.data.sources import open_source


def features_of(embeddings: torch.Tensor) -> SetEmbeddings:
    return neighbours_of(tuple(map(str, range(len(embeddings)))), embeddings, device="cpu")


def clusters(classes: int, each: int, *, spread: float = 0.3) -> tuple[torch.Tensor, np.ndarray]:
    draw = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(classes, 16, generator=draw), dim=1)
    labels = torch.arange(classes).repeat_interleave(each)
    return centres[labels] + spread * torch.randn(len(labels), 16, generator=draw) / 4, labels.numpy()


def test_flipped_labels_are_the_suspects() -> None:
    embeddings, labels = clusters(6, 80)
    flipped = np.random.default_rng(0).permutation(len(labels))[:24]
    given = labels.copy()
    given[flipped] = (given[flipped] + 1 + np.arange(24) % 5) % 6
    suspects = find_label_suspects(features_of(embeddings), given, range(len(labels)), 6)
    assert {suspect.number for suspect in suspects} <= set(flipped.tolist())
    assert len(suspects) >= 20
    for suspect in suspects:
        assert suspect.suggested == labels[suspect.number]
        assert all(given[neighbour] == suspect.suggested for neighbour in suspect.neighbours)
        assert len(suspect.neighbours) == 3
    assert find_label_suspects(features_of(embeddings), labels, range(len(labels)), 6) == []


def test_weak_features_name_nothing() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 300)
    embeddings = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    features = features_of(embeddings)
    assert find_label_suspects(features, labels, range(300), 4, least=-np.inf) == []


def test_near_duplicates_do_not_vote() -> None:
    embeddings, labels = clusters(4, 60)
    given = labels.copy()
    given[0] = 1
    copies = 40  # with the same wrong label: as neighbours they would agree with it
    embeddings = torch.cat([embeddings, embeddings[:1].expand(copies, -1)])
    given = np.concatenate([given, np.ones(copies, np.int64)])
    groups = [0 if at == 0 or at >= 240 else at for at in range(240 + copies)]
    assert 0 in {suspect.number for suspect in find_label_suspects(features_of(embeddings), given, groups, 4)}
    alone = find_label_suspects(features_of(embeddings), given, range(240 + copies), 4)
    assert 0 not in {suspect.number for suspect in alone}


def test_an_image_far_from_all_is_unlike_the_others() -> None:
    embeddings, _ = clusters(4, 60)
    draw = torch.Generator().manual_seed(1)
    lone = F.normalize(torch.randn(2, 16, generator=draw), dim=1)
    found = find_unlike_others(features_of(torch.cat([embeddings, lone])))
    assert {item.number for item in found} == {240, 241}


def test_close_pairs_are_much_closer_than_the_next() -> None:
    embeddings, _ = clusters(3, 50)
    embeddings[10] = embeddings[70] + 1e-4
    assert set(close_pairs(features_of(embeddings))) == {("10", "70")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    tiny = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    vitrail.train("fashion-sample", model=tiny, train={"steps": 2, "batch_size": 16, "eval_every": 0}, out=folder)
    return folder


def test_every_readable_image_has_an_embedding(run: Path, image_folder: object) -> None:
    root = image_folder({"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}})  # type: ignore[operator]
    (root / "train/cat/3.jpg").write_bytes(b"no image")
    source = open_source(str(root), val_fraction=0)
    features = embed_all(run, source)
    assert len(features.paths) == len(features.embeddings) == 15
    assert "train/cat/3.jpg" not in features.paths
    assert features.neighbours.shape == (15, 14)
    checked = check(root, weights=run)
    assert checked.images == 15
    assert not any("give --weights" in line for line in checked.left_out)


def test_weights_that_do_not_load_are_an_error(image_folder: object) -> None:
    root = image_folder({"cat": 4, "dog": 4})  # type: ignore[operator]
    with pytest.raises(ValueError, match="nowhere"):
        check(root, weights="nowhere.safetensors")
