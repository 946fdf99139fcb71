from __future__ import annotations

import numpy as np
import torch
from planted import photo

from vitrail.check.inverted_index import find_candidates
from vitrail.check.scan import make_thumbnails
from vitrail.check.windows import FLIPS, WINDOWS, Describer, flip_signs


def test_the_best_candidate_is_that_of_a_search_of_all() -> None:
    images = torch.from_numpy(np.stack([make_thumbnails(photo(seed % 40))[0] for seed in range(48)]))  # 8 of them twice
    found = find_candidates(images)
    describer = Describer.fit(images)
    whole = describer.describe(images, WINDOWS[:1])[:, 0]
    rows = (whole[:, None] * flip_signs()).flatten(0, 1)
    similarity = (describer.describe(images) @ rows.T).amax(1).view(48, 48, len(FLIPS)).amax(2)
    similarity.fill_diagonal_(-2)
    assert found.images[:8, 0].tolist() == list(range(40, 48))
    assert found.images[40:, 0].tolist() == list(range(8))
    assert (found.images[:, 0] == similarity.argmax(1)).float().mean() > 0.8  # approximate for images without a near one


def test_few_images_have_few_candidates() -> None:
    images = torch.from_numpy(np.stack([make_thumbnails(photo(seed))[0] for seed in range(3)]))
    found = find_candidates(images, probes=100)
    assert [sorted(row[row >= 0].tolist()) for row in found.images] == [[1, 2], [0, 2], [0, 1]]
    assert not (found.images == torch.arange(3)[:, None]).any()
