"""The page in a real headless Chromium: upload, hover, layers and heads, links, keyboard, errors, phone, accessibility."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import CLASSES, running, served, tiny_cait, tiny_swin, tiny_vit

from npm_packages import unpack
from vitrail.serve import attention as attention_module
from vitrail.serve.models import ServedModel

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium"),
]
WIDE, PHONE = {"width": 1440, "height": 1000}, {"width": 390, "height": 844}
TIMEOUT_MS = 30_000
LOUD = ("Failed to load resource",)  # the browser's line for each answer of 400 and above, which is expected where tested


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServedModel]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "one": served("one", tiny_vit(), folder / "one"),
        "two": served("two", tiny_vit(class_token=False, pool="avg", patch_size=4, num_heads=4), folder / "two"),
        "swin": served("swin", tiny_swin(), folder / "swin", calibrated=False),
        "cait": served("cait", tiny_cait(), folder / "cait"),
    }


@pytest.fixture(scope="module")
def address(models: dict[str, ServedModel]) -> Iterator[str]:
    with running(models, max_body_bytes=200_000) as at:
        yield at


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield opened
        opened.close()


Opened = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Opened]:
    """Open the page at a fragment; afterwards, nothing was asked of elsewhere, and no script failed."""
    contexts, wrong = [], []

    def opened(fragment: str = "", *, at: str = address, before: Callable[[Any], None] | None = None, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": WIDE} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: line.type == "error" and not line.text.startswith(LOUD) and wrong.append(line.text))
        page.on("request", lambda one: one.url.startswith((at, "blob:", "data:")) or wrong.append(one.url))
        if before is not None:
            before(page)
        page.goto(f"{at}/{fragment}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def photo(side: int = 64, *, seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def upload(page: Any, contents: bytes, name: str = "mine.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": contents})


def until(page: Any, condition: str) -> None:
    """Wait until a condition holds. Playwright's own wait evaluates text in the page, which the page's policy forbids."""
    for _ in range(TIMEOUT_MS // 50):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"this did not come: {condition}")


def ready(page: Any) -> Any:
    """Wait until the picture of every pane is there, with all of its layers."""
    page.wait_for_selector(".pane.full")
    until(page, "[...document.querySelectorAll('.pane')].every(pane => pane.getAttribute('aria-busy') === 'false')")
    return page


def settled(page: Any) -> Any:
    """Wait until a frame has shown what was asked for before: the page draws once a frame, whatever happened since the last."""
    page.evaluate("new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))")
    return page


def picture(page: Any, place: int = 0) -> str:
    """The pixels of a pane's picture."""
    return str(settled(page).evaluate(f"document.querySelectorAll('.picture')[{place}].toDataURL()"))


def window(page: Any) -> str:
    """The pixels of all thumbnails."""
    script = "[...document.querySelectorAll('.grid canvas')].map(each => each.toDataURL()).join()"
    return str(settled(page).evaluate(script))


def said(page: Any, place: int = 0) -> str:
    return str(settled(page).locator(".reads").nth(place).inner_text())


def hover(page: Any, x: float, y: float, place: int = 0) -> None:
    box = page.locator(".picture").nth(place).bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def chosen(page: Any) -> tuple[str, str]:
    """Layer and head of the marked thumbnail."""
    marked = settled(page).locator(".grid button[aria-pressed=true]").first
    return marked.get_attribute("data-layer"), marked.get_attribute("data-head")


def fragment(page: Any) -> str:
    """The address's fragment, once it has been written."""
    page.wait_for_timeout(350)
    return str(page.evaluate("location.hash"))


# --------------------------------------------------------------------------------------------------------------------
# Images


def test_a_sample_is_shown_at_once(open_page: Opened) -> None:
    page = ready(open_page())
    assert page.locator(".bars li").count() == 5
    assert page.locator(".bars .label").first.inner_text() in CLASSES
    assert page.locator(".mark").all_inner_texts() == ["Unlike the training images", "Calibrated probabilities"]
    assert "coverage" in page.locator(".set").inner_text()
    assert page.locator(".grid button").count() == 3 * 3
    assert said(page).startswith("The class token looks most at row ")
    assert page.locator("#samples button").count() == 10
    page.click("#samples button:nth-child(4)")
    until(page, "document.querySelector('.name').textContent === 'dress'")
    assert page.locator("#samples button:nth-child(4)").get_attribute("aria-pressed") == "true"


def test_an_image_is_picked_dropped_and_pasted(open_page: Opened) -> None:
    page = ready(open_page())
    shown = {picture(page)}
    upload(page, photo(seed=1), "picked.png")
    until(page, "document.querySelector('.name').textContent === 'picked.png'")
    shown.add(picture(ready(page)))
    for event, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        page.evaluate(
            """async ([event, name, contents]) => {
              const blob = new Blob([Uint8Array.from(atob(contents), c => c.charCodeAt(0))]);
              const data = new DataTransfer();
              data.items.add(new File([blob], name, { type: "image/png" }));
              const made = event === "drop"
                ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
              document.body.dispatchEvent(made);
            }""",
            [event, name, base64.b64encode(photo(seed=len(shown))).decode()],
        )
        until(page, f"document.querySelector('.name').textContent === '{name}'")
        shown.add(picture(ready(page)))
    assert len(shown) == 4


def test_the_coverage_is_chosen(open_page: Opened) -> None:
    page = ready(open_page())
    sizes = []
    for coverage in ("0.8", "0.99"):
        page.select_option(".set select", coverage)
        until(page, f"document.querySelector('.set select').value === '{coverage}'")
        page.wait_for_load_state("networkidle")
        sizes.append(page.locator(".chip").count())
    assert sizes[0] <= sizes[1]
    assert sizes[1] >= 1


def test_the_picture_is_what_the_model_sees(open_page: Opened) -> None:
    """The sharp original is cut as the evaluation view is: squares of one colour come out where the model has them."""
    pixels = np.zeros((96, 160, 3), np.uint8)
    pixels[:, 32:128] = (200, 40, 40)  # the centre crop
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    page = ready(open_page("#look=bare"))
    upload(page, file.getvalue())
    until(page, "document.querySelector('.name').textContent === 'mine.png'")
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture(ready(page)).partition(",")[2]))).convert("RGB"))
    assert (np.abs(drawn[::7, ::7].astype(int) - (200, 40, 40)) <= 3).all()


# --------------------------------------------------------------------------------------------------------------------
# Looking


def test_hovering_shows_where_a_patch_looks(open_page: Opened) -> None:
    page = ready(open_page())
    before, small = picture(page), window(page)
    hover(page, 0.1, 0.1)
    assert said(page).startswith("Row 1, column 1 looks most at")
    first, small_first = picture(page), window(page)
    hover(page, 0.9, 0.6)
    assert said(page).startswith("Row 3, column 4 looks most at")
    assert len({before, first, picture(page)}) == 3
    assert len({small, small_first, window(page)}) == 3
    page.mouse.move(2, 2)  # away: the class token again
    assert picture(page) == before
    hover(page, 0.1, 0.1)
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(2, 2)  # a patch that was clicked on stays
    assert said(page).startswith("Row 1, column 1")
    page.click(".cls")
    assert picture(page) == before


def test_what_is_said_is_what_the_model_computes(open_page: Opened, models: dict[str, ServedModel]) -> None:
    page = ready(open_page("#layer=1&head=1&at=0.4,0.9"))
    sample = page.evaluate(
        "fetch('/v1/samples/0-t-shirt').then(a => a.blob()).then(b => b.arrayBuffer()).then(a => [...new Uint8Array(a)])"
    )
    from vitrail.explain import attention

    maps = attention(models["one"].model, [bytes(sample)], layer=1, heads=1, query=(13, 29)).numpy()[0]
    row, column = np.unravel_index(maps.argmax(), maps.shape)
    assert f"looks most at row {row + 1}, column {column + 1}" in said(page)
    percent = 100 * maps.max()
    assert f"with {percent:.1f} %" in said(page) or f"with {round(percent)} %" in said(page)


def test_layers_and_heads_change_the_picture(open_page: Opened) -> None:
    page = ready(open_page())
    seen = [picture(page)]
    page.locator(".layer input").fill("0")
    seen.append(picture(page))
    page.select_option(".head select", "1")
    seen.append(picture(page))
    assert chosen(page) == ("0", "1")
    page.click(".grid button[data-layer='1'][data-head='0']")
    seen.append(picture(page))
    assert page.locator(".layer input").input_value() == "1"
    assert page.locator(".head select").input_value() == "0"
    for look in ("glass", "bare"):
        page.check(f"[name=look][value={look}]", force=True)
        seen.append(picture(page))
    assert len(set(seen)) == len(seen)


def test_it_plays_through_the_layers(open_page: Opened) -> None:
    page = ready(open_page("#layer=0"))
    page.click(".play")
    assert page.locator(".play").get_attribute("aria-label") == "Stop"
    for layer in ("2", "0"):
        until(page, f"document.querySelector('.layer input').value === '{layer}'")
    page.click(".play")
    assert page.locator(".play").get_attribute("aria-label") == "Play through the layers"


def test_maps_of_a_class_come_with_their_faithfulness(open_page: Opened) -> None:
    page = ready(open_page())
    page.select_option(".target", "cat")
    page.click(".explain")
    until(page, "document.querySelectorAll('.maps figure:not(.waiting)').length === 4")
    assert page.locator(".maps b").all_inner_texts() == ["Rollout", "Relevance", "Grad-CAM", "Integrated gradients"]
    scores = page.locator(".score").all_inner_texts()
    assert all("Faithfulness for cat:" in score and "random orders:" in score for score in scores[1:])
    assert "class=cat" in fragment(page) or page.evaluate("document.querySelector('.target').value") == "cat"


def test_a_model_in_parts_comes_whole(open_page: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attention_module, "MAX_BYTES", 2 * 17 * 17)  # one layer of the first model
    with running({"one": served("one", tiny_vit(depth=4), tmp_path / "one")}) as at:
        asked: list[str] = []
        watch: Callable[[Any], None] = lambda page: page.on("request", lambda one: asked.append(one.url))  # noqa: E731
        page = ready(open_page("#layer=1", at=at, before=watch))
        assert page.locator(".grid button.absent").count() == 0
        assert [url.rpartition("layers=")[2] for url in asked if "/v1/attention" in url] == ["1", "0", "2", "3"]


# --------------------------------------------------------------------------------------------------------------------
# Links, comparison, files


def test_a_link_restores_the_view(open_page: Opened) -> None:
    page = ready(open_page())
    page.click("#samples button:nth-child(7)")
    until(page, "document.querySelector('.name').textContent === 'shirt'")
    page.locator(".layer input").fill("1")
    page.select_option(".head select", "0")
    hover(page, 0.6, 0.4)
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(2, 2)
    words, pixels, link = said(page), picture(ready(page)), fragment(page)
    other = ready(open_page(link))
    assert (said(other), picture(other), chosen(other)) == (words, pixels, ("1", "0"))


def test_a_link_of_ones_own_image_says_so(open_page: Opened) -> None:
    page = ready(open_page())
    upload(page, photo(), "private.png")
    until(page, "document.querySelector('.name').textContent === 'private.png'")
    page.click("#share")
    page.wait_for_selector("#notice:not([hidden])")
    assert "Your own image is not in it" in page.inner_text("#notice")
    link = fragment(page)
    assert "private" not in link
    other = open_page(link)
    other.wait_for_selector("#notice:not([hidden])")
    assert "Bring it again" in other.inner_text("#notice")


@pytest.mark.parametrize("link", ["#layer=99&head=99&model=nobody&sample=0-t-shirt", "#at=x,y&look=loud&layer=-1", "#%%%&&=="])
def test_a_broken_link_still_opens(open_page: Opened, link: str) -> None:
    page = ready(open_page(link))
    assert said(page).startswith("The class token")


def test_two_models_stand_side_by_side(open_page: Opened) -> None:
    page = ready(open_page())
    page.click("#compare")
    until(page, "document.querySelectorAll('.pane.full').length === 2")
    ready(page)
    assert page.locator(".model select").nth(1).input_value() == "two"
    hover(page, 0.1, 0.1)
    assert said(page, 0).startswith("Row 1, column 1 looks")
    assert said(page, 1).startswith("Row 2, column 2 looks")  # the same place, in smaller patches
    link = fragment(page)
    assert link.count("model=") == 2
    assert ready(open_page(link)).locator(".pane").count() == 2
    page.click("#compare")
    assert page.locator(".pane").count() == 1


def test_the_picture_is_downloaded(open_page: Opened) -> None:
    page = ready(open_page())
    with page.expect_download() as waiting:
        page.click("#save")
    image = Image.open(waiting.value.path())
    assert waiting.value.suggested_filename == "vitrail.png"
    assert image.format == "PNG"
    assert min(image.size) > 1000
    assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10


# --------------------------------------------------------------------------------------------------------------------
# Models without attention over the whole image


def test_without_attention_the_page_says_why(open_page: Opened) -> None:
    page = ready(open_page("#model=swin&sample=0-t-shirt"))
    assert "no attention over the whole image" in page.inner_text(".why")
    assert page.locator("#controls").is_hidden()
    assert page.locator(".grid").count() == 0
    assert page.locator(".bars li").count() == 5
    assert "Not calibrated" in page.inner_text(".marks")
    hover(page, 0.5, 0.5)  # nothing happens
    page.click(".explain")
    until(page, "document.querySelectorAll('.maps figure:not(.waiting)').length === 2")
    assert page.locator(".maps b").all_inner_texts() == ["Grad-CAM", "Integrated gradients"]


def test_of_a_class_token_alone_its_maps_are_shown(open_page: Opened) -> None:
    page = ready(open_page("#model=cait&sample=0-t-shirt"))
    assert "only the class token looks at the whole image" in page.inner_text(".why")
    assert said(page).startswith("The class token looks most at row ")
    assert page.locator(".grid button").count() == 2 * 3
    before = picture(page)
    hover(page, 0.1, 0.1)
    assert picture(page) == before
    page.keyboard.press("[")
    assert chosen(page) == ("0", "-1")
    assert picture(page) != before


def test_the_model_is_changed(open_page: Opened) -> None:
    page = ready(open_page())
    page.select_option(".model select", "two")
    until(page, "document.querySelectorAll('.grid button').length === 15")
    assert said(ready(page)).startswith("The head, through all that it reads, looks most at")
    assert "mean over the tokens" in page.inner_text(".why")
    page.select_option(".model select", "swin")
    until(page, "document.querySelector('#controls').hidden")


# --------------------------------------------------------------------------------------------------------------------
# Errors


def notice(page: Any) -> str:
    page.wait_for_selector("#notice:not([hidden])")
    return str(page.inner_text("#notice"))


def test_what_is_no_image_or_too_large(open_page: Opened) -> None:
    page = ready(open_page())
    before = picture(page)
    upload(page, b"no image at all", "notes.png")
    assert "can't be read" in notice(page)
    page.click("#notice .close")
    upload(page, bytes(300_000), "huge.png")
    assert "The file huge.png has 0.3 MB, and this server takes 0.2 MB" in notice(page)
    assert picture(page) == before  # what was there is still there, to be explained and linked to
    assert "sample=0-t-shirt" in fragment(page)
    upload(page, photo())
    until(page, "document.querySelector('.name').textContent === 'mine.png'")
    assert page.locator("#notice").is_hidden()


def problem(status: int, detail: str, **headers: str) -> dict[str, Any]:
    return {
        "status": status,
        "headers": headers,
        "content_type": "application/problem+json",
        "body": json.dumps({"detail": detail}),
    }


def test_a_busy_server_is_asked_again(open_page: Opened) -> None:
    answers = [problem(429, "the queue is full", **{"Retry-After": "1"})] * 2

    def busy(route: Any) -> None:
        if answers:
            route.fulfill(**answers.pop())
        else:
            route.continue_()

    page = open_page(before=lambda page: page.route("**/v1/predict*", busy))
    assert "busy" in notice(page)
    assert "Trying again in 1 s" in notice(page)
    ready(page)
    assert page.locator("#notice").is_hidden()
    assert answers == []


def test_a_server_that_is_gone_and_comes_back(open_page: Opened) -> None:
    page = ready(open_page())
    page.route("**/v1/**", lambda route: route.abort())
    upload(page, photo())
    assert "does not answer" in notice(page)
    page.unroute("**/v1/**")
    page.click("#notice button:not(.close)")
    until(page, "document.querySelector('.name').textContent === 'mine.png'")


def test_a_token_is_asked_for_and_kept_in_memory_only(open_page: Opened, models: dict[str, ServedModel]) -> None:
    with running({"one": models["one"]}, token="open-sesame") as at:
        page = open_page(at=at)
        page.wait_for_selector("#token[open]")
        page.fill("#token-field", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-wrong:not([hidden])")
        page.fill("#token-field", "open-sesame")
        page.keyboard.press("Enter")
        ready(page)
        assert page.locator(".bars li").count() == 5
        kept = page.evaluate(
            "JSON.stringify({...localStorage}) + JSON.stringify({...sessionStorage}) + document.cookie + location.href"
        )
        assert "sesame" not in kept
        assert page.locator("#token-field").input_value() == ""
        page.reload()
        page.wait_for_selector("#token[open]")


# --------------------------------------------------------------------------------------------------------------------
# Keyboard, screen readers, phones


def focused(page: Any, selector: str) -> bool:
    return bool(page.evaluate(f"document.activeElement.matches('{selector}')"))


def tab_to(page: Any, selector: str) -> None:
    for _ in range(60):
        if focused(page, selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {selector}")


def test_everything_works_by_keyboard_alone(open_page: Opened) -> None:
    page = ready(open_page("#layer=0"))
    tab_to(page, ".picture")
    page.keyboard.press("ArrowRight")  # the middle first, from which arrows go on
    start = said(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert said(page) != start
    assert said(page).startswith("Row 2, column 4")
    for _ in range(9):
        page.keyboard.press("ArrowDown")
    assert said(page).startswith("Row 4, column 4")
    until(page, "document.querySelector('#live').textContent.startsWith('Row 4, column 4')")
    page.keyboard.press("Home")
    assert said(page).startswith("The class token")
    page.keyboard.press("]")
    page.keyboard.press(".")
    assert chosen(page) == ("1", "0")
    page.keyboard.press("[")
    page.keyboard.press(",")
    assert chosen(page) == ("0", "-1")
    page.keyboard.press("p")
    assert page.locator(".play").get_attribute("aria-label") == "Stop"
    page.keyboard.press("p")
    page.locator(".layer input").fill("0")
    tab_to(page, ".grid button")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert chosen(page) == ("1", "1")
    assert focused(page, ".grid button[aria-pressed=true]")
    tab_to(page, ".explain")
    page.keyboard.press("Enter")
    page.wait_for_selector(".maps figure")
    tab_to(page, "#keys-open")
    page.keyboard.press("Enter")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()


def test_names_of_classes_and_files_are_text(open_page: Opened) -> None:
    page = ready(open_page())
    upload(page, photo(), "<img src=x onerror=alert(1)>.png")
    until(page, "document.querySelector('.name').textContent.startsWith('<img')")
    assert page.locator(".name img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(open_page: Opened, scheme: str) -> None:
    page = ready(open_page(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2, color_scheme=scheme))
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wider) <= 0
    box = page.locator(".picture").bounding_box()
    page.touchscreen.tap(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    assert said(page).startswith("Row 1, column 1 looks")
    page.click("#compare")
    until(page, "document.querySelectorAll('.pane.full').length === 2")
    assert page.evaluate(wider) <= 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 17, 22)"
    assert dark == (scheme == "dark")


def test_light_and_dark_are_chosen(open_page: Opened) -> None:
    page = ready(open_page(color_scheme="dark"))
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(16, 17, 22)"
    page.click("#theme")
    assert page.evaluate(ground) == "rgb(248, 246, 241)"
    page.reload()
    assert page.evaluate(ground) == "rgb(248, 246, 241)"


def test_nothing_moves_for_those_who_prefer_it(open_page: Opened) -> None:
    page = ready(open_page(reduced_motion="reduce"))
    assert page.evaluate("getComputedStyle(document.querySelector('.wait span')).animationName") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('#save')).transitionDuration") == "0s"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core: of $AXE_CORE, or of npm."""
    named = os.environ.get("AXE_CORE")
    return (Path(named) if named else unpack("axe-core", tmp_path_factory.mktemp("npm")) / "axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_core_finds_nothing_serious(open_page: Opened, axe: str, screen: dict[str, int], scheme: str) -> None:
    page = ready(open_page("#class=cat&model=one&sample=0-t-shirt", viewport=screen, color_scheme=scheme))
    until(page, "document.querySelectorAll('.maps figure:not(.waiting)').length === 4")
    for state in ("open", "compare", "dialog"):
        if state == "compare":
            page.click("#compare")
            until(page, "document.querySelectorAll('.pane.full').length === 2")
        if state == "dialog":
            page.click("#keys-open")
        page.evaluate(axe)
        found = page.evaluate(
            "axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html.slice(0, 120))]))"
        )
        assert [one for one in found if one[0] in ("serious", "critical")] == [], state
