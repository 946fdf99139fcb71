"""Confusion matrix as SVG: rows are shares of a true class; of many classes, alike ones stand together. Pure functions."""

# K classes

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from vitrail.report.svg import LETTER, element, picture, shortened, text

COUNTED = 20
"""Up to this many classes, each cell carries its count, and the order is the model's."""
MOST = 120
"""Classes in a picture, at most: of more, those with the most mistakes."""
LEAST_PX = 880.0
"""Width below which a picture of many classes is not shrunk: a phone scrolls it."""
DARK = 0.7
"""Opacity from which on a cell's count is written in the light colour."""


def confusion_chart(confusion: Int[np.ndarray, "K K"], classes: Sequence[str], *, label: str) -> Markup:
    """Draw the matrix. A cell's opacity is the root of its share of the row, so that rare mistakes show."""
    order = shown_order(confusion)
    counts, names = confusion[np.ix_(order, order)], [classes[index] for index in order]
    totals = np.maximum(confusion[order].sum(1), 1)
    few = len(order) <= COUNTED
    side = 34.0 if few else 11.0
    letters = 16 if few else 20
    shown = [shortened(name, letters) for name in names]
    room = 12 + (LETTER if few else 0.8 * LETTER) * max(map(len, shown))
    above = room * 0.75 + 12 if few else room
    size = side * len(order)
    parts = [
        element("rect", x=room, y=above, width=size, height=size, class_="plane"),
        text(room, 11, "predicted →", class_="quiet"),
    ]
    for row, (name, total) in enumerate(zip(names, totals.tolist(), strict=True)):
        y = above + side * row
        parts.append(text(room - 6, y + side * 0.5 + 4, shown[row], anchor="end", class_="" if few else "small"))
        for column in counts[row].nonzero()[0].tolist():
            count, x = int(counts[row, column]), room + side * column
            share = count / total
            words = f"{name} → {names[column]}: {count:,} of {total:,} ({100 * share:.1f} %)"
            kind = "hit" if row == column else "miss"
            opacity = round(share**0.5, 3)
            cell = element(
                "rect", element("title", words), x=x, y=y, width=side - 1, height=side - 1, class_=kind, fill_opacity=opacity
            )
            parts.append(cell)
            if few:
                tone = "count light" if opacity > DARK else "count"
                parts.append(text(x + side / 2 - 0.5, y + side / 2 + 4, f"{count}", anchor="middle", class_=tone))
    for column, words in enumerate(shown):
        x = room + side * (column + 0.5)
        style = {"class_": "" if few else "small", "rotate": -40.0 if few else -90.0}
        parts.append(text(x + (0 if few else 4), above - 6, words, **style))  # type: ignore[arg-type]
    right = room * 0.75 if few else 8.0
    width = room + size + right
    return picture(width, above + size + 4, *parts, label=label, least=0.0 if few else min(width, LEAST_PX))


def shown_order(confusion: Int[np.ndarray, "K K"]) -> list[int]:
    """Return the classes of the picture in their order: all as they are, or those with the most mistakes, alike ones near."""
    count = len(confusion)
    if count <= COUNTED:
        return list(range(count))
    wrong = confusion - np.diag(np.diag(confusion))
    mistakes = wrong.sum(0) + wrong.sum(1)
    kept = np.sort(np.argsort(-mistakes, kind="stable")[:MOST])
    return [int(kept[place]) for place in alike_together(wrong[np.ix_(kept, kept)])]


def alike_together(wrong: Int[np.ndarray, "K K"]) -> list[int]:
    """Order classes so that those taken for each other are near: by the second eigenvector of the Laplacian (Fiedler 1973).

    Groups that are never confused with others follow each other by size.
    """
    weights = (wrong + wrong.T).astype(np.float64)
    order: list[int] = []
    for group in sorted(components(weights > 0), key=lambda group: (-len(group), group[0])):
        part = weights[np.ix_(group, group)]
        if len(group) < 3:
            order += group
            continue
        degree = part.sum(1)
        scaled = part / np.sqrt(np.outer(degree, degree))
        _, vectors = np.linalg.eigh(np.eye(len(group)) - scaled)
        places: Float[np.ndarray, " _"] = vectors[:, 1] / np.sqrt(degree)
        places *= np.sign(places[np.abs(places).argmax()]) or 1  # an eigenvector's sign is arbitrary
        order += [group[place] for place in np.argsort(-places, kind="stable").tolist()]
    return order


def components(linked: np.ndarray) -> list[list[int]]:
    """Return the groups of classes that are linked with each other, each sorted."""
    left, groups = set(range(len(linked))), []
    while left:
        group, fresh = set[int](), {min(left)}
        while fresh:
            group |= fresh
            fresh = {int(other) for one in fresh for other in linked[one].nonzero()[0]} - group
        left -= group
        groups.append(sorted(group))
    return groups
