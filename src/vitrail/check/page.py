"""HTML page of a checked data set, with thumbnails: one file that needs no other."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

from vitrail.check.finding import KINDS, DataFinding
from vitrail.check.image_set import ImageSet, list_images
from vitrail.check.result import CheckedData
from vitrail.check.run import open_any
from vitrail.data.decode import BadImage
from vitrail.settings import DataConfig
from vitrail.text import printable
from vitrail.weights.run_folder import write_atomically

SIDE = 128
"""Longest side of a thumbnail in pixels."""
_FINDINGS, _IMAGES = 8, 4  # of a kind, and of a finding, that the page shows
_QUALITY = 75

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --page: #ffffff; --quiet: #595f69; --line: #d5d9e0; --panel: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8eaed; --page: #16181c; --quiet: #a7adb8; --line: #3a3f49; --panel: #1f2228; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.25rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0; }
.quiet { color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
a { color: inherit; }
.findings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .75rem; padding: 0;
  list-style: none; }
.findings > li { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: .5rem; }
figure { margin: 0; width: 8rem; }
figure img { display: block; max-width: 100%; border-radius: .25rem; background: var(--line); }
figcaption { font-size: .75rem; line-height: 1.3; color: var(--quiet); }
@media print { .findings > li { break-inside: avoid; } }
"""


def write_page(checked: CheckedData, data: str | Path, path: str | Path) -> Path:
    """Write the page of `checked`, whose images are read from `data` again. Raises ValueError if it can't be written."""
    text = "".join(page(checked, thumbnails(data)))
    try:
        with write_atomically(Path(path)) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} can't be written ({error.strerror}); name a file in a folder that exists") from None
    return Path(path)


def thumbnails(data: str | Path) -> Callable[[str], str | None]:
    """Return a function from the path of an image to a data URI of its thumbnail, or None if it can't be read."""
    source, _ = open_any(str(data), DataConfig().val_fraction)
    images: ImageSet = list_images(source)
    number = {image.path: index for index, image in enumerate(images.images)}

    def thumbnail(path: str) -> str | None:
        if path not in number:
            return None
        try:
            picture = images.picture(number[path], short_side=SIDE)
        except (BadImage, OSError):
            return None
        picture.thumbnail((SIDE, SIDE))
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    return thumbnail


def page(checked: CheckedData, thumbnail: Callable[[str], str | None]) -> Iterator[str]:
    """Yield the parts of the page: head, figures of the set, a section for each kind of finding."""
    title = f"Data check: {_text(checked.name)}"
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n"
    yield f"<p>{checked.images:,} images, {len(checked.findings):,} findings</p>\n</header>\n<main>\n"
    yield from _summary(checked)
    yield from _classes(checked)
    for kind, findings in checked.by_kind():
        yield from section(kind, findings, thumbnail)
    for line in checked.left_out:
        yield f'<p class="quiet">Left out: {_text(line)}</p>\n'
    yield "</main>\n</body>\n</html>\n"


def section(kind: str, findings: tuple[DataFinding, ...], thumbnail: Callable[[str], str | None]) -> Iterator[str]:
    """Yield the section of one kind: heading, suggestion, and the strongest findings with their images."""
    yield f'<section>\n<h2 id="{kind}">{KINDS[kind].title.capitalize()}: {len(findings):,}</h2>\n'
    yield f'<p class="quiet">{_text(KINDS[kind].suggestion)}</p>\n<ul class="findings">\n'
    for finding in findings[:_FINDINGS]:
        yield "<li>"
        pictures = [_figure(path, thumbnail) for path in (*finding.paths, *finding.beside)[:_IMAGES]]
        if pictures:
            yield f'<div class="pictures">{"".join(pictures)}</div>'
        yield f'<p>{_text(finding.evidence)}</p><p class="quiet">{_text(finding.advice)}</p></li>\n'
    yield "</ul>\n"
    if len(findings) > _FINDINGS:
        yield f'<p class="quiet">and {len(findings) - _FINDINGS:,} more: vitrail check --fix-list lists all</p>\n'
    yield "</section>\n"


def _summary(checked: CheckedData) -> Iterator[str]:
    yield "".join(f"<p>{_text(line)}</p>\n" for line in checked.describe())
    if not checked.findings:
        yield "<p>Nothing was found.</p>\n"
        return
    yield '<div class="wide"><table><thead><tr><th scope="col">finding</th><th scope="col">number</th></tr></thead><tbody>\n'
    for kind, findings in checked.by_kind():
        yield f'<tr><td><a href="#{kind}">{KINDS[kind].title}</a></td><td>{len(findings):,}</td></tr>\n'
    yield "</tbody></table></div>\n"


def _classes(checked: CheckedData) -> Iterator[str]:
    splits = list(checked.counts)
    head = "".join(f'<th scope="col">{split}</th>' for split in splits)
    yield f'<div class="wide"><table><thead><tr><th scope="col">images</th>{head}</tr></thead><tbody>\n'
    for name in next(iter(checked.counts.values()), {}):
        cells = "".join(f"<td>{checked.counts[split][name]:,}</td>" for split in splits)
        yield f"<tr><td>{_text(name)}</td>{cells}</tr>\n"
    yield f"<tr><td>all</td>{''.join(f'<td>{checked.totals[split]:,}</td>' for split in splits)}</tr>\n"
    yield "</tbody></table></div>\n"


def _figure(path: str, thumbnail: Callable[[str], str | None]) -> str:
    uri, name = thumbnail(path), _text(path)
    image = f'<img src="{uri}" alt="image {name}">' if uri else "<p>not shown: it can't be read</p>"
    return f"<figure>{image}<figcaption>{name}</figcaption></figure>"


def _text(text: str) -> str:
    return html.escape(printable(text))
