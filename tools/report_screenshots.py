"""Screenshots of a report in a headless Chromium: on a wide and a narrow screen, light and dark; and what axe-core finds.

    python tools/report_screenshots.py RUN/report.html --out FOLDER [--axe node_modules/axe-core/axe.min.js]
    python tools/report_screenshots.py RUN/report.html --out docs/pictures --docs

Without --docs, the whole page in four pictures, to look at. With it, the pictures of docs/report.md. The browser is Debian's
`chromium`, or the one that $CHROMIUM names, driven by its DevTools over a pipe: nothing else is needed. axe-core is a package
of npm (`npm install axe-core`). The exit code is 1 where it finds something serious, and where the page is wider than its
screen or asks for anything beyond itself.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

SCREENS = {"wide": (1280, 900), "narrow": (375, 812)}
"""Width and height of each screen, in pixels."""
SCHEMES = ("light", "dark")
SERIOUS = ("serious", "critical")
QUALITY = 80


class DocsPicture(NamedTuple):
    """A picture of docs/report.md: what of the page, on which screen."""

    screen: str
    scheme: str
    section: str | None
    """Anchor of the section; None for the top of the page."""
    height: int
    """Pixels of the page, at most."""


DOCS = {
    "report": DocsPicture("wide", "light", None, 1500),
    "report-dark": DocsPicture("wide", "dark", "errors", 1100),
    "report-phone": DocsPicture("narrow", "light", None, 1100),
    "report-confusion": DocsPicture("wide", "light", "confusion", 900),
}


def find_browser() -> str | None:
    """Return the path of Chromium; None where it is not installed."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """Headless Chromium, by its DevTools protocol over two pipes: messages are JSON with a zero byte behind each."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def connect() -> None:  # the protocol wants descriptors 3 and 4
            os.dup2(to_browser, 100)
            os.dup2(from_browser, 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        words = [program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        words += ["--disable-gpu", "--hide-scrollbars", "--no-sandbox"]  # root, as in a container, has no sandbox
        self._process = subprocess.Popen(
            words, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self.events = b"", 0, list[dict[str, Any]]()
        target = self.call("Target.createTarget", url="about:blank", session=None)["targetId"]
        self._session: str | None = self.call("Target.attachToTarget", targetId=target, flatten=True, session=None)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, session: str | None = "page", **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result. Raises RuntimeError where the browser refuses it."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        """Read one message."""
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, page: Path, *, width: int, height: int, scheme: str) -> None:
        """Open a file on a screen with a preferred colour scheme, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """Run JavaScript, wait for its promise, and return its value."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", "the script failed"))
        return found["result"].get("value")

    def picture(self, *, section: str | None = None, height: int | None = None) -> Image.Image:
        """Return a screenshot of the page, or of one section, of at most a height."""
        found = "document.documentElement" if section is None else f"document.getElementById({json.dumps(section)})"
        sides = "b => [b.x, b.y + scrollY, b.width, b.height]"
        left, top, width, full = self.run(f"({sides})({found}.getBoundingClientRect())")
        clip = {"x": left, "y": top, "width": width, "height": min(full, height or full), "scale": 1}
        taken = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for since it was opened, but for itself and data URIs."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [str(parameters["request"]["url"]) for parameters in sent]
        return [url for url in urls if not url.startswith(("file:", "data:"))]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its screen."""
        return int(self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def accessibility(self, axe: str) -> list[str]:
        """Return what axe-core, given as its source, finds with all parts unfolded: impact, rule and the first element."""
        self.run(f"{axe};document.querySelectorAll('details').forEach(part => part.open = true)")
        found = self.run("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.help, v.nodes[0].html]))")
        return [f"{impact} {rule}: {words}: {element[:120]}" for impact, rule, words, element in found]

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(RuntimeError, OSError):
            self.call("Browser.close", session=None)
        self._process.wait(timeout=30)
        os.close(self._read)
        os.close(self._write)


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser with a profile of its own, and end it. Raises ValueError where there is none."""
    program = find_browser()
    if program is None:
        raise ValueError("there is no chromium here; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, Path(profile))
        try:
            yield browser
        finally:
            browser.close()


def look(browser: Browser, page: Path, out: Path, axe: str | None) -> list[str]:
    """Write the whole page on each screen and scheme, and return what is wrong with it."""
    wrong = []
    for screen, (width, height) in SCREENS.items():
        for scheme in SCHEMES:
            browser.open(page, width=width, height=height, scheme=scheme)
            browser.picture().save(out / f"{page.stem}-{screen}-{scheme}.png")
            name = f"{screen}, {scheme}"
            if extra := browser.overflow():
                wrong.append(f"{name}: {extra} pixels wider than the screen")
            wrong += [f"{name}: asks for {url}" for url in browser.requests()]
            found = browser.accessibility(axe) if axe else []
            print("\n".join([f"{name}: axe-core finds {len(found) or 'nothing'}", *found]) if axe else f"{name}: written")
            wrong += [f"{name}: {each}" for each in found if each.startswith(SERIOUS)]
    return wrong


def write_docs(browser: Browser, page: Path, out: Path) -> None:
    """Write the pictures of docs/report.md."""
    for name, shown in DOCS.items():
        width, height = SCREENS[shown.screen]
        browser.open(page, width=width, height=height, scheme=shown.scheme)
        browser.picture(section=shown.section, height=shown.height).save(out / f"{name}.webp", quality=QUALITY, method=6)
        print(out / f"{name}.webp")


def main() -> int:
    """Take the pictures. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--docs", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        if args.docs:
            write_docs(browser, args.page, args.out)
            return 0
        wrong = look(browser, args.page, args.out, args.axe.read_text() if args.axe else None)
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
