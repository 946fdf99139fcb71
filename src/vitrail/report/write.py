"""Write the report of a run: facts, material, page."""

from __future__ import annotations

from pathlib import Path

from vitrail.data.listing import mark_output
from vitrail.evaluate.run import evaluate_run
from vitrail.report.facts import RunFacts, gather_facts
from vitrail.report.material import collect_material, open_images
from vitrail.report.page import render_page
from vitrail.weights.run_folder import write_atomically

REPORT = "report.html"
"""Name of the page in a run folder."""


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    images: str | None = None,
    scores: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Write the report of a finished run as one HTML file, and return its path.

    The default of `out` is report.html in the folder of the scores, which is the run folder. `images` is where the scored
    images are now, by default where the run found them; without them, the page has no pictures. A run of an earlier version,
    which kept no predictions image by image, is evaluated first. `scores` is a folder that `vitrail evaluate` wrote for other
    images. Raises ValueError, in one line, for a folder that is no finished run, for damaged
    files, and for `images` that are not there.
    """
    folder = Path(run)
    place = Path(scores or folder)
    facts = gather_facts(folder, scores=place)
    if images is not None:
        open_images(facts, images)  # what is named has to be there; where the run found them, they may be gone
    if scores is None:
        facts = complete_facts(facts, images=images, device=device)
    page = render_page(facts, collect_material(facts, images=images, device=device))
    path = Path(out) if out is not None else place / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as draft:
        draft.write_text(page, encoding="utf-8", errors="backslashreplace")
    if out is None:
        mark_output(place, [path], command="report")
    return path


def complete_facts(facts: RunFacts, *, images: str | None, device: str) -> RunFacts:
    """Evaluate a run whose predictions were not kept, in one pass of the model; without its images the facts stay."""
    if not facts.info.classes or facts.predictions is not None:
        return facts
    folder = facts.info.folder
    try:
        evaluate_run(folder, images, device=device, report=lambda line: None).save(folder)
    except (ValueError, OSError):
        return facts
    return gather_facts(folder)


def try_report(run: str | Path, **options: object) -> str:
    """Write a report and return the line that says where it is; or the line that says why there is none.

    A training or an evaluation never fails because of its report.
    """
    try:
        return f"report: {write_report(run, **options)}"  # type: ignore[arg-type]
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"note: there is no report ({type(error).__name__}: {reason}); `vitrail report {run}` makes it"
