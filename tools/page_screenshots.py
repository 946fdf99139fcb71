"""Screenshots of the page of `vitrail serve` in a headless Chromium, wide and narrow, light and dark; and what axe-core finds.

    python tools/page_screenshots.py http://127.0.0.1:8000 --out FOLDER [--view '#layer=3'] [--axe package/axe.min.js]
    python tools/page_screenshots.py http://127.0.0.1:8000 --out docs/pictures --docs

Without --docs, the whole page in four pictures, to look at. With it, the pictures of docs/serve.md: --view is then the
fragment of the link that they show, of a model with a class token. The browser is Debian's `chromium`, or the one that
$CHROMIUM names, driven by Playwright; axe-core is a package of npm (`npm pack axe-core`). The exit code is 1 where it finds
something serious, and where the page is wider than its screen.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

SCREENS = {"wide": (1440, 900), "narrow": (390, 844)}
"""Width and height of each screen, in CSS pixels."""
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
SERIOUS = ("serious", "critical")
WAIT_MS = 180_000
QUALITY = 82


class DocsPicture(NamedTuple):
    """A picture of docs/serve.md."""

    screen: str
    scheme: Scheme
    height: int
    """CSS pixels of the page, at most."""
    compare: bool = False


DOCS = {
    "page": DocsPicture("wide", "light", 1075),
    "page-dark": DocsPicture("wide", "dark", 1900),
    "page-compare": DocsPicture("wide", "light", 1500, compare=True),
    "page-phone": DocsPicture("narrow", "dark", 1250),
}


def open_view(browser: Browser, address: str, view: str, *, screen: str, scheme: Scheme) -> Page:
    """Open the page at a view, and wait until its pictures and maps are there."""
    width, height = SCREENS[screen]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        device_scale_factor=1 if screen == "wide" else 2,
    )
    page.goto(f"{address.rstrip('/')}/{view}")
    settle(page)
    return page


def settle(page: Page) -> None:
    """Wait until nothing is on its way."""
    page.wait_for_selector(".pane.full[aria-busy=false]", timeout=WAIT_MS)
    page.wait_for_load_state("networkidle", timeout=WAIT_MS)
    page.wait_for_timeout(500)
    while page.locator("figure.waiting, .pane:not(.full)").count():
        page.wait_for_timeout(200)


def picture(page: Page, *, height: int | None = None) -> Image.Image:
    """Return a screenshot of the page, of at most a height."""
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    dense = taken.width / page.evaluate("innerWidth")
    return taken if height is None else taken.crop((0, 0, taken.width, min(taken.height, round(height * dense))))


def look(browser: Browser, address: str, view: str, out: Path, axe: str | None) -> list[str]:
    """Write the whole page on each screen and scheme, and return what is wrong with it."""
    wrong: list[str] = []
    for screen in SCREENS:
        for scheme in SCHEMES:
            page = open_view(browser, address, view, screen=screen, scheme=scheme)
            picture(page).save(out / f"page-{screen}-{scheme}.png")
            name = f"{screen}, {scheme}"
            if extra := page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"):
                wrong.append(f"{name}: {extra} pixels wider than the screen")
            found = accessibility(page, axe) if axe else []
            print("\n".join([f"{name}: axe-core finds {len(found) or 'nothing'}", *found]) if axe else f"{name}: written")
            wrong += [f"{name}: {each}" for each in found if each.startswith(SERIOUS)]
            page.close()
    return wrong


def accessibility(page: Page, axe: str) -> list[str]:
    """Return what axe-core, given as its source, finds: impact, rule and the first element."""
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.help, v.nodes[0].html]))")
    return [f"{impact} {rule}: {words}: {element[:120]}" for impact, rule, words, element in found]


def write_docs(browser: Browser, address: str, view: str, out: Path) -> None:
    """Write the pictures of docs/serve.md."""
    for name, shown in DOCS.items():
        page = open_view(browser, address, view, screen=shown.screen, scheme=shown.scheme)
        if shown.compare:
            page.click("#compare")
            settle(page)
        picture(page, height=shown.height).save(out / f"{name}.webp", quality=QUALITY, method=6)
        print(out / f"{name}.webp")
        page.close()


def main() -> int:
    """Take the pictures. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--view", default="", metavar="FRAGMENT", help="fragment of a link, as the page's address has it")
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--docs", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        raise SystemExit("there is no chromium here; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        if args.docs:
            write_docs(browser, args.address, args.view, args.out)
            return 0
        wrong = look(browser, args.address, args.view, args.out, args.axe.read_text() if args.axe else None)
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
