from __future__ import annotations

import numpy as np

from vitrail.check.jumps import before_jump


def pairs(distances: dict[tuple[int, int], float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second = (np.array([pair[side] for pair in distances], np.int64) for side in (0, 1))
    return first, second, np.array(list(distances.values()), np.float64)


def found(distances: dict[tuple[int, int], float], images: int, **options: float) -> tuple[set[object], set[object]]:
    jumps = before_jump(*pairs(distances), images=images, **{"largest": 0.5, "unrelated": 0.4, **options})
    order = list(distances)
    return {order[i] for i in np.flatnonzero(jumps.sure)}, {order[i] for i in np.flatnonzero(jumps.possible)}


def test_a_pair_much_closer_than_all_else_is_sure() -> None:
    distances = {(0, 1): 0.01, (0, 2): 0.2, (1, 2): 0.2, (2, 3): 0.19, (1, 3): 0.21, (0, 3): 0.22}
    assert found(distances, 4, unrelated=0.22) == ({(0, 1)}, {(0, 1)})


def test_equal_distances_have_no_jump() -> None:
    distances = {(a, b): 0.2 for a in range(4) for b in range(a + 1, 4)}
    assert found(distances, 4, unrelated=0.2) == (set(), set())


def test_all_copies_before_the_jump_are_duplicates() -> None:
    copies = {(a, b): 0.001 * (1 + a + b) for a in range(4) for b in range(a + 1, 4)}
    others = {(a, b): 0.2 for a in range(4) for b in range(4, 7)} | {(a, b): 0.2 for a in range(4, 7) for b in range(a + 1, 7)}
    sure, _ = found(copies | others, 7)
    assert sure == set(copies)


def test_a_jump_of_one_image_alone_is_possible_and_not_sure() -> None:
    distances = {(0, 1): 0.05, (0, 2): 0.3, (1, 2): 0.051, (1, 3): 0.052, (2, 3): 0.05, (0, 3): 0.3}
    sure, possible = found(distances, 4, unrelated=0.055)
    assert (0, 1) not in sure
    assert (0, 1) in possible


def test_nothing_beyond_the_largest_distance() -> None:
    assert found({(0, 1): 0.05, (0, 2): 0.3, (1, 2): 0.3}, 3, largest=0.04) == (set(), set())


def test_no_pairs() -> None:
    assert found({}, 0) == (set(), set())
