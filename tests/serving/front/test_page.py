"""The page at `/`, in a real browser against a server on a real port."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import Watched, browser, opened
from helpers.http_server import Running, running
from helpers.serving import Inbox, image, watched
from helpers.var_samples import VAR_MODELS, build_var_bundle
from helpers.waiting import HANGS
from ldp_runtime import Pipeline
from ldp_runtime.pipeline.trace import Trace
from ldp_serving.limits import Limits
from ldp_serving.model import open_model
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

expect.set_options(timeout=1e3 * HANGS)

#: Narrowest window in which nothing may need scrolling to the side, in CSS pixels (WCAG 2.2, 1.4.10).
NARROW = 320
#: Least contrast of text (WCAG 2.2, 1.4.3).
CONTRAST = 4.5


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def server(small_pipe: Pipeline) -> Iterator[Running]:
    with running(small_pipe, allow_policy=("none", "none:skip_last=1")) as started:
        yield started


@pytest.fixture
def seen(chromium: Browser, server: Running) -> Iterator[Watched]:
    """The page, loaded; at its end its console is empty, and it has asked nobody but its server."""
    with opened(chromium, server.url) as found:
        expect(found.page.get_by_label("Prompt")).to_be_enabled()
        yield found
        assert found.complaints == []
        assert found.hosts <= {server.url.split("/")[2], ""}


@pytest.fixture
def page(seen: Watched) -> Page:
    return seen.page


class Gate:
    """Holds the engines of a server up between two scales."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._held, self._open = threading.Event(), threading.Event()

    def __call__(self, name: str, inputs: Any) -> None:
        if self._left is None or not name.startswith("blocks"):
            return
        if self._left == 0:
            self._held.set()
            assert self._open.wait(HANGS)
            self._open.clear()
        else:
            self._left -= 1

    def hold(self, scales: int) -> None:
        """Lets so many scales of what is drawn next pass, and no more."""
        self._held.clear()
        self._open.clear()
        self._left = scales

    def advance(self, scales: int) -> None:
        """Lets the scale that is held up pass, and so many more."""
        self._held.clear()
        self._left = scales
        self._open.set()

    def reached(self) -> None:
        assert self._held.wait(HANGS)

    def release(self) -> None:
        self._left = None
        self._open.set()


@contextmanager
def held(pipe: Pipeline, **options: Any) -> Generator[tuple[Running, Gate]]:
    """A server whose engines can be held up."""
    gate = Gate()
    with running(watched(pipe, gate), **options) as server:
        try:
            yield server, gate
        finally:
            gate.release()


def ask(page: Page, prompt: str = "a red circle", seed: int | None = 3, policies: tuple[str, ...] = ("ld",)) -> None:
    """Fills the form in and draws."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Seed", exact=True).fill("" if seed is None else str(seed))
    for box in page.locator("#policy-list input").all():
        box.set_checked(box.input_value() in policies)
    page.get_by_role("button", name="Draw").click()


def card(page: Page, policy: str = "ld") -> Locator:
    return page.get_by_role("article", name=f"Policy {policy}", exact=True)


def await_drawn(page: Page, *policies: str) -> None:
    for policy in policies or ("ld",):
        expect(card(page, policy).get_by_role("link", name="Download")).to_be_visible()


def drawn(pipe: Pipeline, **options: Any) -> tuple[np.ndarray, Trace]:
    """Pixels [h, w, 3] and trace of a request that the library draws."""
    drawing = pipe.start([image(pipe, **options)])
    while not drawing.is_done:
        drawing.step()
    ((latent, trace),) = drawing.results()
    return np.asarray(pipe.decode(latent[None])[0]), trace


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2)))


def masked(page: Page, grid: tuple[int, int]) -> list[bool]:
    """Darkened cells of the mask over the picture, row by row, read from its pixels."""
    return page.evaluate(
        """([rows, columns]) => {
            const mask = document.querySelector('.mask');
            const [width, height] = [mask.width / columns, mask.height / rows];
            const copy = Object.assign(document.createElement('canvas'), { width: mask.width, height: mask.height });
            const context = copy.getContext('2d', { willReadFrequently: true });
            context.drawImage(mask, 0, 0);
            const at = (i) => [(i % columns + .5) * width, (Math.floor(i / columns) + .5) * height];
            const alpha = ([x, y]) => context.getImageData(x, y, 1, 1).data[3];
            return Array.from({ length: rows * columns }, (_, i) => alpha(at(i)) > 128);
        }""",
        list(grid),
    )


class TestDrawing:
    def test_the_picture_is_what_the_library_draws(self, server: Running, page: Page) -> None:
        ask(page, seed=7)
        await_drawn(page)
        pixels, trace = drawn(server.pipe, seed=7, policy="ld")
        with page.expect_download() as download:
            card(page).get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == "7-ld.png"
        file = Image.open(io.BytesIO(download.value.path().read_bytes()))
        assert np.array_equal(np.asarray(file.convert("RGB")), pixels)
        expect(card(page).locator(".tokens")).to_have_text(f"{trace.tokens} of {trace.tokens_full}")
        expect(card(page).locator(".time")).to_have_text(re.compile(r"^[\d.]+ ms$"))
        expect(card(page).get_by_role("img", name="“a red circle”, drawn with ld, seed 7")).to_be_visible()
        expect(page.get_by_role("status")).to_contain_text("ld: drawn in")

    def test_each_scale_shows_its_mask(self, server: Running, page: Page) -> None:
        ask(page, seed=7)
        await_drawn(page)
        _, trace = drawn(server.pipe, seed=7, policy="ld")
        assert any(scale.kept is not None for scale in trace.scales)
        for scale in trace.scales:
            share = "all" if scale.tokens == scale.tokens_full else str(scale.tokens)
            part = card(page).get_by_label(f"scale {scale.scale + 1}, {scale.grid[1]}x{scale.grid[0]}: {share} of")
            part.check()
            kept = set(range(scale.tokens_full)) if scale.kept is None else set(scale.kept.tolist())
            assert masked(page, scale.grid) == [i not in kept for i in range(scale.tokens_full)]
        card(page).get_by_label("the picture alone").check()
        expect(card(page).locator(".mask")).to_be_hidden()

    def test_policies_stand_side_by_side(self, server: Running, page: Page) -> None:
        policies = ("ld", "none", "none:skip_last=1")
        ask(page, seed=5, policies=policies)
        await_drawn(page, *policies)
        pictures = {policy: drawn(server.pipe, seed=5, policy=policy) for policy in policies}
        for policy, (pixels, trace) in pictures.items():
            expect(card(page, policy).locator(".tokens")).to_have_text(f"{trace.tokens} of {trace.tokens_full}")
            wanted = f"{psnr_db(pixels, pictures['none'][0]):.1f} dB" if policy != "none" else "unpruned"
            expect(card(page, policy).locator(".psnr")).to_have_text(wanted)
        tops = {round(card(page, policy).bounding_box()["y"]) for policy in policies}  # pyright: ignore
        assert len(tops) == 1

    def test_without_the_unpruned_picture_there_is_no_psnr(self, page: Page) -> None:
        ask(page, policies=("ld", "none:skip_last=1"))
        await_drawn(page, "ld", "none:skip_last=1")
        expect(card(page).locator(".psnr")).to_have_text("–")

    def test_a_seed_is_chosen_once_for_all(self, page: Page) -> None:
        ask(page, seed=None, policies=("ld", "none"))
        await_drawn(page, "ld", "none")
        seeds = [card(page, policy).locator(".seed").text_content() for policy in ("ld", "none")]
        assert seeds[0] == seeds[1] != "–"

    def test_sizes(self, server: Running, page: Page) -> None:
        page.get_by_label("Width x height").select_option("44x88")
        ask(page)
        await_drawn(page)
        box = card(page).locator(".picture").bounding_box()
        assert box is not None
        assert box["height"] / box["width"] == pytest.approx(2, abs=0.02)

    def test_the_picture_comes_scale_by_scale(self, chromium: Browser, small_pipe: Pipeline) -> None:
        """While a scale is held up, those before it are on the page, with the mask of the newest."""
        with held(small_pipe) as (server, gate), opened(chromium, server.url) as found:
            page = found.page
            gate.hold(scales=6)
            ask(page)
            gate.reached()
            expect(card(page).locator(".scale")).to_have_count(1 + 6)
            expect(page.get_by_role("progressbar")).to_have_attribute("max", "7")
            expect(card(page).locator(".mask")).to_be_visible()
            expect(card(page).locator("img")).to_have_attribute("alt", re.compile("drawn with ld, after scale [4-6]$"))
            expect(card(page).get_by_role("link", name="Download")).to_be_hidden()
            card(page).get_by_label("scale 1, 1x1").check()
            expect(card(page).locator("img")).to_be_hidden()
            gate.release()
            await_drawn(page)
            expect(card(page).get_by_label("scale 1, 1x1")).to_be_checked()
            card(page).get_by_label("scale 7").check()
            expect(card(page).locator("img")).to_have_attribute("alt", re.compile("seed 3$"))
            assert found.complaints == []

    def test_progress_of_a_slow_picture_is_announced(self, chromium: Browser, small_pipe: Pipeline) -> None:
        """Not each scale of a fast one: nobody could listen to that."""
        with held(small_pipe) as (server, gate), opened(chromium, server.url) as found:
            gate.hold(scales=2)
            ask(found.page)
            gate.reached()
            status = found.page.get_by_role("status")
            expect(status).to_have_text("Drawing with ld.")
            found.page.wait_for_timeout(2100)
            gate.advance(1)
            gate.reached()
            expect(card(found.page).locator(".scale")).to_have_count(1 + 4)
            expect(status).to_have_text("Drawing with ld: scale 3 of 7.")
            gate.release()
            expect(status).to_contain_text("ld: drawn in")


class TestPeople:
    def test_by_keyboard_alone(self, page: Page) -> None:
        """Nothing is clicked: the form, the masks and the picture's file are reached with Tab, arrows and keys."""
        keyboard = page.keyboard

        def tab_to(locator: Locator) -> None:
            for _ in range(40):
                if locator.evaluate("element => element === document.activeElement"):
                    outline = locator.evaluate("element => getComputedStyle(element).outlineStyle")
                    assert outline != "none", "what has the focus must be seen"
                    return
                keyboard.press("Tab")
            raise AssertionError(f"{locator} is not reached by Tab")

        tab_to(page.get_by_label("Prompt"))
        keyboard.type("a blue star")
        tab_to(page.get_by_label("Seed", exact=True))
        keyboard.type("11")
        tab_to(page.get_by_label("none", exact=True))
        keyboard.press("Space")
        tab_to(page.get_by_role("button", name="Draw"))
        keyboard.press("Enter")
        await_drawn(page, "none", "ld")
        tab_to(card(page, "none").get_by_role("link", name="Download"))
        tab_to(card(page, "none").get_by_label("the picture alone"))
        keyboard.press("ArrowDown")
        expect(card(page, "none").get_by_label("scale 1, 1x1")).to_be_checked()
        expect(card(page, "none").locator(".mask")).to_be_visible()
        link = card(page).get_by_role("link", name="Download")
        tab_to(link)
        with page.expect_download() as download:
            keyboard.press("Enter")
        assert download.value.suggested_filename == "11-ld.png"

    def test_enter_draws_and_shift_enter_begins_a_line(self, page: Page) -> None:
        prompt = page.get_by_label("Prompt")
        prompt.press_sequentially("a red")
        prompt.press("Shift+Enter")
        prompt.press_sequentially("circle")
        prompt.press("Enter")
        await_drawn(page)
        assert prompt.input_value() == "a red\ncircle"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_is_read_in_both_modes(self, page: Page, scheme: Any) -> None:
        page.emulate_media(color_scheme=scheme)
        ask(page, policies=("ld", "none"))
        await_drawn(page, "ld", "none")
        page.evaluate("document.getElementById('error').textContent = 'a complaint'")
        found: list[tuple[str, list[float], list[float]]] = page.evaluate(COLOURS)
        assert len(found) > 20
        faint = {text: ratio for text, ink, paper in found if (ratio := contrast(ink, paper)) < CONTRAST}
        assert not faint
        paper = luminance(found[0][2])
        assert paper < 0.1 if scheme == "dark" else paper > 0.9

    def test_a_narrow_window_needs_no_scrolling_to_the_side(self, chromium: Browser, server: Running) -> None:
        with opened(chromium, server.url, viewport={"width": NARROW, "height": 640}) as found:
            page = found.page
            ask(page, prompt="unbreakable" * 40, policies=("ld", "none", "none:skip_last=1"))
            await_drawn(page, "ld", "none", "none:skip_last=1")
            page.evaluate("document.getElementById('error').textContent = 'x'.repeat(300)")
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
            assert page.evaluate(OUTSIDE, NARROW) == []
            lefts = [card(page, policy).bounding_box()["x"] for policy in ("ld", "none")]  # pyright: ignore
            assert lefts[0] == lefts[1]

    def test_every_field_has_a_name(self, page: Page) -> None:
        ask(page)
        await_drawn(page)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('input, select, textarea, button, a, progress, img, fieldset')]
                .filter((element) => element.checkVisibility())
                .filter((element) => !(element.labels?.length || element.getAttribute('aria-label') || element.alt
                    || element.textContent.trim()))
                .map((element) => element.outerHTML)"""
        )
        assert nameless == []
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator("#status").get_attribute("role") == "status"
        assert page.locator("#error").get_attribute("role") == "alert"

    @pytest.mark.parametrize("hostile", ["<img src=x onerror='hit=1'>", "<script>hit=1</script>&amp;", "\"><b>x</b>'"])
    def test_a_hostile_prompt_is_text(self, page: Page, hostile: str) -> None:
        ask(page, prompt=hostile)
        await_drawn(page)
        expect(card(page).locator("img")).to_have_attribute("alt", f"“{hostile}”, drawn with ld, seed 3")
        assert page.evaluate("window.hit") is None
        assert page.locator("img, b, article script").count() == 1


class TestErrors:
    def test_what_the_server_refuses_is_said(self, page: Page, seen: Watched) -> None:
        ask(page, prompt="  \n ")
        expect(page.get_by_role("alert")).to_contain_text("the 'prompt' is empty")
        expect(card(page).locator(".time")).to_have_text("failed")
        ask(page, policies=())
        expect(page.get_by_role("alert")).to_contain_text("tick at least one policy")
        ask(page)
        await_drawn(page)
        expect(page.get_by_role("alert")).to_be_empty()
        assert all("status of 400" in text for text in seen.complaints)
        seen.complaints.clear()

    def test_a_full_queue_is_said(self, chromium: Browser, small_pipe: Pipeline) -> None:
        with (
            held(small_pipe, max_batch=1, max_queue=1, max_images=1) as (server, gate),
            opened(chromium, server.url) as found,
        ):
            gate.hold(scales=0)
            inbox = Inbox()
            server.model.scheduler.submit([image(small_pipe)], inbox)
            gate.reached()
            server.model.scheduler.submit([image(small_pipe)], inbox)
            ask(found.page)
            alert = found.page.get_by_role("alert")
            expect(alert).to_contain_text("1 pictures wait, the queue holds 1. Try again in")
            gate.release()
            inbox.ends(2)
            ask(found.page)
            await_drawn(found.page)
            expect(alert).to_be_empty()

    def test_a_server_that_fails_in_mid_stream(self, chromium: Browser, small_pipe: Pipeline) -> None:
        broken = False

        def before(name: str, inputs: Any) -> None:
            if broken and name == "decoder":
                raise RuntimeError("secret of the engine")

        with running(watched(small_pipe, before)) as server, opened(chromium, server.url) as found:
            broken = True
            ask(found.page)
            expect(found.page.get_by_role("alert")).to_contain_text("the picture could not be drawn")
            assert "secret" not in found.page.content()

    def test_a_server_that_is_gone(self, chromium: Browser, small_pipe: Pipeline) -> None:
        with opened(chromium, "about:blank") as found:
            with running(small_pipe) as server:
                found.page.goto(server.url)
                expect(found.page.get_by_label("Prompt")).to_be_enabled()
            ask(found.page)
            expect(found.page.get_by_role("alert")).to_contain_text("the server cannot be reached")

    @pytest.mark.parametrize("how", ["the button", "Escape", "the window closed"])
    def test_leaving_cancels(self, chromium: Browser, small_pipe: Pipeline, how: str) -> None:
        with held(small_pipe) as (server, gate), opened(chromium, server.url) as found:
            page = found.page
            count = server.metric("ldp_pictures_total", model="small")
            gate.hold(scales=2)
            ask(page, policies=("ld", "none"))
            gate.reached()
            if how == "the window closed":
                page.close()
            else:
                button = page.get_by_role("button", name="Stop")
                button.press("Enter") if how == "the button" else page.keyboard.press("Escape")
                expect(page.get_by_role("status")).to_have_text("Stopped.")
                expect(card(page, "none").locator(".time")).to_have_text("stopped")
                expect(button).to_be_disabled()
                if how == "the button":
                    expect(page.get_by_role("button", name="Draw")).to_be_focused()
            await_cancelled(server)
            gate.release()
            server.settle()
            assert server.metric("ldp_pictures_total", model="small") == count
            assert found.complaints == []


def test_what_is_asked_anew_takes_the_place_of_what_is_drawn(chromium: Browser, small_pipe: Pipeline) -> None:
    with held(small_pipe) as (server, gate), opened(chromium, server.url) as found:
        gate.hold(scales=2)
        ask(found.page, policies=("ld", "none"))
        gate.reached()
        ask(found.page, prompt="a blue star")
        await_cancelled(server)
        gate.release()
        await_drawn(found.page)
        expect(found.page.locator("article")).to_have_count(1)
        expect(found.page.get_by_role("img", name="“a blue star”, drawn with ld, seed 3")).to_be_visible()
        expect(found.page.get_by_role("status")).to_contain_text("ld: drawn in")
        expect(found.page.get_by_role("alert")).to_be_empty()
        assert found.complaints == []


def await_cancelled(server: Running) -> None:
    """Waits until the server knows that the client is gone."""
    for _ in range(int(HANGS / 0.01)):
        if server.metric("ldp_requests_total", model="small", outcome="cancelled"):
            return
        threading.Event().wait(0.01)
    raise AssertionError("the request was not cancelled")


class TestServers:
    def test_a_server_that_asks_for_a_key(self, chromium: Browser, small_pipe: Pipeline, tmp_path: Path) -> None:
        file = tmp_path / "keys.txt"
        file.write_text("one 0123456789abcdef0123\n")
        with running(small_pipe, api_key_file=file) as server, opened(chromium, server.url) as found:
            page, key = found.page, found.page.get_by_label("API key")
            expect(key).to_be_focused()
            expect(page.get_by_label("Prompt")).to_be_disabled()
            assert found.complaints == []
            page.keyboard.type("wrong")
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_contain_text("incorrect API key")
            key.fill("0123456789abcdef0123")
            page.keyboard.press("Enter")
            expect(page.get_by_label("Prompt")).to_be_focused()
            expect(page.get_by_role("alert")).to_be_empty()
            ask(page)
            await_drawn(page)
            kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]")
            assert kept == [0, 0, "", f"{server.url}/"]
            page.reload()
            expect(key).to_have_value("")

    def test_no_key_field_without_keys(self, page: Page) -> None:
        expect(page.get_by_label("API key")).to_be_hidden()

    def test_a_model_of_texts_and_one_of_classes(self, chromium: Browser, small_pipe: Pipeline, tmp_path: Path) -> None:
        bundle = build_var_bundle(VAR_MODELS["one AdaLN for all blocks"].write(tmp_path / "var"), tmp_path / "bundle")
        with Pipeline.load(bundle, threads=1) as pipe, running(small_pipe) as server:
            counts = server.service.metrics.of_model("classes")
            server.service.add(open_model(pipe, "classes", Limits(), counts, previews=0))
            with opened(chromium, server.url) as found:
                page, field = found.page, found.page.get_by_label("Class")
                expect(page.get_by_label("Prompt")).to_be_enabled()
                expect(field).to_be_hidden()
                page.get_by_label("Model").select_option("classes")
                expect(page.get_by_label("Prompt")).to_be_hidden()
                expect(page.locator("#class-note")).to_have_text("0 to 4")
                field.fill("5")
                page.get_by_role("button", name="Draw").click()
                expect(page.locator("article")).to_have_count(0)
                field.fill("4")
                page.get_by_role("button", name="Draw").click()
                await_drawn(page)
                expect(card(page).get_by_role("img", name=re.compile("^Class 4, drawn with ld"))).to_be_visible()
                page.get_by_label("Model").select_option("small")
                expect(field).to_be_hidden()
                ask(page)
                expect(card(page).get_by_role("img", name="“a red circle”, drawn with ld, seed 3")).to_be_visible()
                assert found.complaints == []

    def test_a_server_that_is_loading(self, chromium: Browser, small_pipe: Pipeline) -> None:
        with running(small_pipe) as server:
            server.service.is_loaded = False
            with opened(chromium, server.url) as found:
                expect(found.page.get_by_role("status")).to_have_text("The server is loading its models.")
                server.service.is_loaded = True
                expect(found.page.get_by_label("Prompt")).to_be_enabled()
                assert found.complaints == []

    def test_a_proxy_may_put_it_under_a_prefix(self, chromium: Browser, server: Running) -> None:
        with opened(chromium, "about:blank") as found:
            page, beyond = found.page, server.url + "/"
            page.route("**/*", lambda route: route.abort())
            page.route(f"{beyond}pictures/**", lambda route: route.continue_(url=stripped(route.request.url)))
            page.goto(f"{beyond}pictures/")
            ask(page)
            await_drawn(page)
            assert found.complaints == []

    def test_it_can_be_switched_off(self, chromium: Browser, small_pipe: Pipeline) -> None:
        with running(small_pipe, page=False) as server, opened(chromium, "about:blank") as found:
            for path in ("/", "/page/page.js", "/page/server.json"):
                answer = found.page.request.get(server.url + path)
                assert answer.status == 404
                assert answer.json()["error"]["code"] == "not_found"


def stripped(url: str) -> str:
    return url.replace("/pictures/", "/", 1)


class TestFiles:
    @pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/page.css", "/page/icon.svg", "/page/server.json"])
    def test_the_content_policy_allows_nothing_inline(self, page: Page, server: Running, path: str) -> None:
        answer = page.request.get(server.url + path)
        assert answer.status == 200
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert (policy["frame-ancestors"], policy["base-uri"], policy["form-action"]) == ("'none'",) * 3
        assert not re.search("unsafe|https?:|\\*", answer.headers["content-security-policy"])
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_the_policy_is_in_force(self, page: Page, seen: Watched) -> None:
        """Had an attacker's markup come in, it would neither run nor reach another host."""
        page.evaluate(
            """() => {
                const script = document.createElement('script');
                try { script.textContent = 'window.hit = 1'; } catch {}
                document.head.append(script);
                try { document.body.setAttribute('onclick', 'window.hit = 2'); } catch {}
                document.body.click();
            }"""
        )
        assert page.evaluate("window.hit") is None
        refused = "() => fetch('http://192.0.2.1/').then(() => 'sent', () => 'refused')"
        assert page.evaluate(refused) == "refused"
        assert any("connect-src" in text for text in seen.complaints)
        seen.complaints.clear()
        seen.hosts.clear()

    def test_files_stand_by_themselves(self) -> None:
        for file in (resources.files("ldp_serving.front") / "static").iterdir():
            text = file.read_text()
            assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|\bon[a-z]+=", text)
            assert re.findall(r"https?://[^\s\"']+", text) in ([], ["http://www.w3.org/2000/svg"])
            assert "style=" not in text

    def test_nothing_else_is_served(self, page: Page, server: Running) -> None:
        for path in ("/page/", "/page/no.js", "/page/../page.py", "/page/%2e%2e/page.py", "/page/..%2fpage.py"):
            assert page.request.get(server.url + path).status == 404


#: Text of the page, with its colour and that of what lies behind it.
COLOURS = """() => {
    const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
    const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const colour = rgba(getComputedStyle(e).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll('body *')]
        .filter((e) => e.checkVisibility() && !e.matches(':disabled'))
        .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
        .map((e) => [e.textContent.trim().slice(0, 40), rgba(getComputedStyle(e).color), behind(e)]);
}"""
#: Elements that begin or end outside of a window of this width.
OUTSIDE = """(width) => [...document.querySelectorAll('body *')]
    .filter((e) => e.checkVisibility() && !e.closest('.unseen'))
    .filter((e) => e.getBoundingClientRect().left < 0 || e.getBoundingClientRect().right > width + .5)
    .map((e) => e.outerHTML.slice(0, 100))"""


def luminance(colour: list[float]) -> float:
    """Relative luminance of an sRGB colour, as WCAG defines it."""
    shares = [value / 255 for value in colour[:3]]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
