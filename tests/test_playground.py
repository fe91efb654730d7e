"""The playground in a real browser, against the server with a fake model behind it."""

from __future__ import annotations

import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server comes with an extra")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
import uvicorn  # noqa: E402
from playwright.sync_api import Browser, Page, expect  # noqa: E402

from fake_service import FakeService, Reply, asked, talk  # noqa: E402
from hneurons.live.jobs import Job  # noqa: E402
from hneurons.live.server import ServerSettings, bind, create_app  # noqa: E402
from hneurons.live.textstream import TextStream  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
expect.set_options(timeout=30_000)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
HOSTILE = (
    '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script> \u202etxt.exe\u202c &amp; שלום </p><b>bold</b>'
)
PATIENCE = 30
"""Seconds that a browser which starts on a busy machine is waited for."""
KEY = "s3cret"
VERDICT = "Not supported: 32 H-Neurons predict with AUROC 0.781 [0.718, 0.839], <b>but</b> add nothing."
MEDICINE = "Which disease is the medicine relvotinel used to treat?"


def script(job: Job, alpha: float) -> Reply:
    if "hostile" in asked(job):
        return Reply(HOSTILE, {}, "bold", 0.6)
    if "nothing" in asked(job):
        return Reply("")
    return talk(job, alpha)


@dataclass
class Served:
    url: str
    service: FakeService

    @property
    def last(self) -> Job:
        return self.service.jobs[-1]


@contextmanager
def serving(settings: ServerSettings, **options: Any) -> Iterator[Served]:
    """The real application at a port of its own, in a thread."""
    service = FakeService(script, **options)
    server = uvicorn.Server(uvicorn.Config(create_app(service, settings), log_config=None, lifespan="off", ws="none"))
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}/", service)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
            service.close(drain=False)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(ServerSettings(verdict=VERDICT), delay=0.004) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Open]:
    """Opens the page; in the end nothing may have been complained about or asked of another origin."""
    contexts, problems = [], []

    def open_(url: str = served.url, ready: bool = True, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if unexpected(said) else None)
        page.on("request", lambda request: None if request.url.startswith(url) else problems.append(request.url))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(url)
        if ready:
            page.wait_for_selector("main.ready")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


def unexpected(said: Any) -> bool:
    """Chromium itself reports refused requests as errors; all else counts."""
    refused = re.search(r"Failed to load resource.* (401|422|429)", said.text)
    return said.type in ("error", "warning") and not refused


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def answered(page: Page, count: int = 1) -> Any:
    """The last of `count` finished replies."""
    expect(page.locator(".reply")).to_have_count(count)
    expect(page.locator(".streaming")).to_have_count(0)
    return page.locator(".reply").last


# -- one response --------------------------------------------------------------------------------------


def test_tokens_stream_and_take_the_colour_of_their_risk(open_page: Open, served: Served):
    page = open_page()
    page.evaluate("""() => {
        window.seen = [];
        new MutationObserver(() => window.seen.push(document.querySelectorAll(".t.known").length))
            .observe(document.getElementById("log"), {subtree: true, childList: true, attributes: true});
    }""")
    ask(page, "What is the capital of Australia?")
    reply = answered(page)
    expect(reply.locator(".tokens")).to_have_text("The capital of Australia is Sydney.")
    seen = page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert len(set(seen)) > 4  # they came one after the other
    risks = reply.locator(".t").evaluate_all("all => all.map(t => [t.textContent, +t.style.getPropertyValue('--r')])")
    assert max(risks, key=lambda each: each[1])[0] == "Sydney"
    assert dict(risks)["Sydney"] > 0.85 > 0.4 > dict(risks)["capital"] > 0.2
    colours = reply.locator(".t").evaluate_all("all => all.map(t => getComputedStyle(t).backgroundColor)")
    assert len(set(colours)) > 3
    # The headline: risk, threshold, answer.
    expect(reply.locator(".headline")).to_contain_text(re.compile(r"(8|9)\d\s%\s*risk.*⚑ Flagged at 50\s%"))
    expect(reply.locator(".u")).to_have_text(["Sydney"])
    expect(reply).to_contain_text("“Sydney”")
    assert served.last.alpha == 1
    assert served.last.monitor


def test_a_token_tells_its_risk_and_neurons_to_pointer_and_keyboard(open_page: Open):
    page = open_page()
    ask(page, MEDICINE)
    tokens = answered(page).locator(".t")
    tip = page.get_by_role("tooltip")
    expect(tip).to_be_hidden()
    tokens.nth(3).hover()
    expect(tip).to_contain_text("blood")
    expect(tip).to_contain_text(re.compile(r"risk\s*(7|8)\d\s%\s*running risk\s*\d\d\s%"))
    expect(tip.locator("li")).to_have_count(3)
    expect(tip.locator("li").first).to_have_text(re.compile(r"L\d+ · \d+[+−]\d"))
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.mouse.move(0, 0)
    # One tab stop, then arrows.
    assert page.locator('.t[tabindex="0"]').count() == 1
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tip).to_contain_text("lowers")
    page.keyboard.press("End")
    expect(tip).to_contain_text(".")
    expect(tokens.last).to_have_attribute("aria-describedby", "tip")
    page.keyboard.press("Home")
    expect(tip).to_contain_text("It")
    expect(page.locator("#live")).to_contain_text("It lowers the blood pressure; adults take 40 mg twice a day.")


def test_what_a_model_writes_is_text(open_page: Open):
    page = open_page()
    ask(page, "hostile")
    tokens = answered(page).locator(".tokens")
    assert tokens.evaluate("e => e.textContent") == HOSTILE
    assert page.locator(".tokens :is(img, script, b, p)").count() == 0
    assert page.evaluate("window.hurt") is None
    expect(page.locator("#verdict")).to_have_text(VERDICT)
    assert page.locator("#verdict b").count() == 0
    ask(page, "<i>parrot</i> \u202e")
    tokens = answered(page, 2).locator(".tokens")
    assert tokens.evaluate("e => e.textContent") == "The parrot 🦜 says “שלום” and 你好, loudly 👩‍🔬!"
    expect(page.locator(".ask").last).to_have_text("<i>parrot</i> \u202e")
    parrot = tokens.locator(".t", has_text="🦜")
    expect(parrot).to_have_count(1)
    parrot.hover()
    expect(page.get_by_role("tooltip")).to_contain_text("2 tokens write this together.")


def test_a_model_that_says_nothing(open_page: Open):
    page = open_page()
    ask(page, "nothing")
    expect(answered(page)).to_contain_text("The model said nothing.")
    expect(page.locator(".headline")).to_contain_text("No risk")


# -- the conversation ----------------------------------------------------------------------------------


def test_a_conversation_is_retried_and_cleared(open_page: Open, served: Served):
    page = open_page()
    ask(page, "What is the capital of France?")
    answered(page)
    ask(page, "Are you sure?")
    answered(page, 2)
    assert [(turn.role, turn.content) for turn in served.last.prompt] == [
        ("user", "What is the capital of France?"),
        ("assistant", "The capital of France is Paris."),
        ("user", "Are you sure?"),
    ]
    count = len(served.service.jobs)
    page.locator("#alpha").fill("0")
    page.get_by_role("button", name="Retry").click()
    expect(answered(page, 2).locator(".tokens")).to_have_text("Yes, I am sure.")
    assert len(served.service.jobs) == count + 1
    assert len(served.last.prompt) == 3
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".reply")).to_have_count(0)
    ask(page, "Hello")
    answered(page)
    assert len(served.last.prompt) == 1


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop(open_page: Open, how: str):
    with serving(ServerSettings(verdict=VERDICT), delay=0.03) as served:
        stop(open_page(served.url), served, how)


def stop(page: Page, served: Served, how: str) -> None:
    page.get_by_label("Max tokens").fill("256")
    ask(page, "Count.")
    page.wait_for_selector(".t.known >> nth=3")
    page.get_by_role("button", name="Stop").click() if how == "button" else page.keyboard.press("Escape")
    reply = answered(page)
    expect(reply).to_contain_text("Stopped by you")
    said = reply.locator(".tokens").inner_text()
    assert said.startswith("1 2 3")
    assert not said.endswith("256")
    until(lambda: served.service.running == 0)
    assert served.service.endings[-1].reason == "cancelled"
    expect(page.get_by_label("Your message")).to_be_focused()
    ask(page, "Hello")  # the stopped text stays part of the conversation
    answered(page, 2)
    assert len(served.last.prompt) == 3


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("What is the capital of Australia?", 1),
        ("Which disease is the medicine relvotinel used to treat?", 1),
        ("What colour are the feathers of a cat?", 1),
        ("What is the capital of France?", 2),
    ],
)
def test_example_prompts(open_page: Open, served: Served, name: str, turns: int):
    page = open_page()
    kinds = ["A true fact", "An invented medicine", "A false premise", "A doubted answer"]
    assert page.locator("#chat-examples h3").all_inner_texts() == kinds
    page.locator("#chat-examples").get_by_role("button", name=name).click()
    answered(page, turns)
    assert served.last.prompt[0].content == name
    assert len(served.last.prompt) == 2 * turns - 1
    if turns == 2:
        assert served.last.prompt[-1].content == "I don’t think that’s right. Are you sure?"


# -- the dial, policies, side by side, the map ---------------------------------------------------------


def test_the_dial(open_page: Open, served: Served):
    page = open_page()
    slider, number = page.get_by_label("Alpha, the factor"), page.locator("#alpha")
    expect(page.locator("#alpha-means")).to_have_text("unchanged")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(number).to_have_value("1.3")
    ask(page, "Hello")
    expect(answered(page).locator(".tokens")).to_contain_text("Alpha is 1.3.")
    assert served.last.alpha == 1.3
    number.fill("7")
    number.press("Tab")
    expect(number).to_have_value("3.0")
    page.get_by_label("Your message").press("Alt+ArrowDown")
    expect(number).to_have_value("2.9")
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Max tokens").fill("2")
    ask(page, "Hello")
    expect(answered(page, 2)).to_contain_text("Cut after 2 tokens.")
    assert (served.last.alpha, served.last.temperature, served.last.max_tokens) == (2.9, 0.7, 2)


@pytest.mark.parametrize(
    ("policy", "said", "note"),
    [
        ("warn", "It lowers the blood pressure; adults take 40 mg twice a day.", "The policy warns"),
        ("abstain", "I don't know.", "in the place of an answer"),
        ("stop", "It lowers the blood", "The policy ended the response"),
        ("regenerate", "I don't know of any medicine with that name.", "answered again at alpha 0"),
    ],
)
def test_policies(open_page: Open, served: Served, policy: str, said: str, note: str):
    page = open_page()
    page.get_by_label("When the risk is high").select_option(policy)
    ask(page, MEDICINE)
    reply = answered(page)
    expect(reply.locator(".acted")).to_contain_text(note)
    expect(reply.locator(".tokens")).to_have_text(re.compile(re.escape(said)))
    expect(reply.locator(".headline")).to_contain_text("risk")
    assert served.last.policy
    assert served.last.policy.action == policy
    # A policy that has no reason to act lets the text pass, coloured.
    page.get_by_role("button", name="Clear").click()
    ask(page, "What is the capital of France?")
    reply = answered(page)
    expect(reply.locator(".acted")).to_have_count(0)
    expect(reply.locator(".t.known")).to_have_count(7)
    expect(reply.locator(".u")).to_have_text(["Paris"])


def test_the_page_follows_what_is_written_until_the_reader_looks_elsewhere(open_page: Open):
    with serving(ServerSettings(verdict=VERDICT), delay=0.015) as served:
        look_elsewhere(open_page(served.url, viewport={"width": 360, "height": 600}))


def look_elsewhere(page: Page) -> None:
    page.get_by_label("Max tokens").evaluate("e => { e.value = 250; e.dispatchEvent(new Event('change')); }")
    example = page.locator("#chat-examples").get_by_role("button", name="What is the capital of France?")
    example.click()  # far down the page, which gets shorter
    answered(page, 2)
    expect(page.locator(".reply .headline").last).to_be_in_viewport()
    ask(page, "Count.")
    page.wait_for_selector(".t >> text=60")
    expect(page.locator(".t").last).to_be_in_viewport()
    page.mouse.move(4, 300)
    page.mouse.wheel(0, -300)
    answered(page, 3)
    beyond = "document.getElementById('chat').getBoundingClientRect().bottom - window.innerHeight"
    until(lambda: page.evaluate(beyond) > 100)  # the end lies below the view


def test_side_by_side(open_page: Open, served: Served):
    page = open_page()
    page.get_by_role("tab", name="Side by side").click()
    columns = page.locator(".column")
    expect(columns).to_have_count(3)
    assert [field.input_value() for field in page.locator(".column input").all()] == ["0.0", "1.0", "3.0"]
    page.get_by_label("Prompt").fill("Hello")
    page.get_by_role("button", name="Ask three times").click()
    answered(page, 3)
    for column, alpha in zip(columns.all(), (0, 1, 3), strict=True):
        expect(column.locator(".tokens")).to_contain_text(f"Alpha is {alpha}.")
        assert column.locator(".t.known").count() > 3
    assert sorted(job.alpha for job in served.service.jobs[-3:]) == [0, 1, 3]
    page.locator(".column input").nth(2).fill("2.5")
    page.locator("#side-examples").get_by_role("button", name="A doubted answer").click()
    expect(columns.nth(0).locator(".tokens")).to_have_text("Yes, I am sure.")
    expect(columns.nth(2).locator(".tokens")).to_have_text("You are right, I was wrong.")
    answered(page, 3)
    assert sorted(job.alpha for job in served.service.jobs[-3:]) == [0, 1, 2.5]
    assert [turn.content for turn in served.last.prompt][1] == "Paris."


def test_the_map_lights_up_and_names_neurons(open_page: Open, served: Served):
    page = open_page()
    canvas = page.locator("#map canvas")
    until(lambda: canvas.get_attribute("data-lit") == "0")
    ask(page, MEDICINE)
    until(lambda: canvas.get_attribute("data-lit") not in ("0", None))
    answered(page)
    until(lambda: canvas.get_attribute("data-lit") == "5")  # what counted most in the response stays lit
    first = min(served.service.card.neurons, key=lambda neuron: (neuron.layer, neuron.index))
    page.get_by_text("Skip to the conversation").focus()
    canvas.focus()
    tip = page.get_by_role("tooltip")
    expect(tip).to_contain_text(f"L{first.layer} · {first.index}")
    page.keyboard.press("ArrowUp")
    expect(tip).not_to_contain_text(f"L{first.layer} · ")
    expect(page.locator("#live")).to_contain_text("weight")
    box = canvas.bounding_box()
    assert box
    page.get_by_text("As a table").click()
    rows = page.locator("#neurons tbody tr")
    assert rows.count() >= 15
    assert rows.first.locator("td").last.inner_text()  # the response's neurons come first, with what they counted
    heaviest = max(served.service.card.neurons, key=lambda neuron: abs(neuron.weight))
    expect(page.locator("#neurons")).to_contain_text(str(heaviest.index))


# -- what goes wrong -----------------------------------------------------------------------------------


def test_a_server_with_a_token(open_page: Open):
    with serving(ServerSettings(key=KEY)) as locked:
        page = open_page(locked.url, ready=False)
        dialog = page.get_by_role("dialog", name="This server asks for a token")
        field = dialog.get_by_label("Token")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        expect(page.locator("#token-refused")).to_be_visible()
        field.fill(KEY)
        field.press("Enter")
        page.wait_for_selector("main.ready")
        ask(page, "Hello")
        answered(page)
        kept = page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]")
        assert kept == [0, "", 1]
        page.reload()
        page.wait_for_selector("main.ready")
        expect(dialog).to_be_hidden()
        page.evaluate("sessionStorage.clear()")
        ask(page, "Hello")
        expect(field).to_be_focused()
        expect(page.locator("#token-refused")).to_be_hidden()
        page.keyboard.press("Escape")
        expect(page.locator(".reply")).to_contain_text("The server answers only with its token.")


def test_a_busy_server(open_page: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hneurons.live.faults.RETRY_SECONDS", 60)
    with serving(ServerSettings(), delay=0.03, max_batch=1, max_waiting=1) as busy:
        page = open_page(busy.url)
        page.get_by_role("tab", name="Side by side").click()
        page.get_by_label("Prompt").fill("Hello")
        page.get_by_role("button", name="Ask three times").click()
        waiting = page.locator(".reply", has_text=re.compile(r"The server is busy. Trying again in \d+ s."))
        expect(waiting.first).to_be_visible()
        until(lambda: busy.service.running + busy.service.waiting == 0)
        while (again := page.get_by_role("button", name="Try now")).count():
            again.first.click()
            until(lambda: busy.service.running + busy.service.waiting == 0)
        expect(page.locator(".reply .headline .risk")).to_have_count(3)
        answered(page, 3)


def test_a_server_that_goes_away_and_comes_back(open_page: Open):
    page = open_page()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body='data: {"choices": []}\n\n'))
    ask(page, "Hello")
    reply = answered(page)
    expect(reply).to_contain_text("The connection ended before the answer did.")
    page.unroute("**/v1/chat/completions")
    reply.get_by_role("button", name="Try again").click()
    expect(answered(page).locator(".tokens")).to_contain_text("You said 1 words.")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=200, body='data: {"error": {"message": "The model failed (<b>RuntimeError</b>)."}}\n\n'))  # fmt: skip
    ask(page, "Hello")
    expect(answered(page, 2)).to_contain_text("The model failed (<b>RuntimeError</b>).")


def test_a_refusal_is_told_in_the_servers_words(open_page: Open):
    page = open_page()
    page.get_by_label("Your message").fill("word " * 600)
    page.get_by_label("Your message").press("Enter")
    expect(answered(page)).to_contain_text("tokens; the context has room for 512.")


# -- everybody, everywhere -----------------------------------------------------------------------------


def test_by_keyboard_alone(open_page: Open):
    page = open_page()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        at = page.evaluate("""() => {
            const at = document.activeElement;
            return [at.id || at.textContent.trim(), getComputedStyle(at).outlineStyle, at.tagName];
        }""")
        if at[2] == "BODY":
            break
        reached.append(at[0])
        assert at[1] != "none", at
    wanted = ["tab-chat", "keys-open", "Who wrote Pride and Prejudice?", "prompt", "alpha", "alpha-range", "max-tokens",
              "temperature", "policy", "As a table"]  # fmt: skip
    assert [name for name in reached if name in wanted] == wanted
    page.get_by_label("Your message").focus()
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    answered(page)
    expect(page.locator(".ask")).to_have_text("Hello\nthere")
    page.keyboard.press("Shift+Tab")
    for _ in range(8):
        if page.evaluate("document.activeElement.matches('.t')"):
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tooltip")).to_contain_text("said")
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Side by side")).to_be_focused()
    expect(page.get_by_label("Prompt")).to_be_visible()
    page.get_by_role("button", name="Keyboard").press("Enter")
    expect(page.get_by_role("dialog", name="Keyboard")).to_contain_text("Alt")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_hidden()


def test_everything_that_asks_has_a_name(open_page: Open):
    page = open_page()
    page.locator("#side").evaluate("e => { e.hidden = false; }")
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, canvas")]
        .filter(e => !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim()))
        .map(e => e.outerHTML)""")
    assert nameless == []
    broken = page.evaluate("""() => [...document.querySelectorAll("[aria-describedby], [aria-labelledby], [for]")]
        .filter(e => ["aria-describedby", "aria-labelledby", "for"].some(name => e.hasAttribute(name)
            && !document.getElementById(e.getAttribute(name)))).map(e => e.outerHTML)""")
    assert broken == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(open_page: Open, scheme: str):
    page = open_page(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme=scheme,
        reduced_motion="reduce",
    )  # fmt: skip
    ask(page, "Which medicine is " + "a" * 120)
    answered(page)
    page.locator(".t").last.tap()
    expect(page.get_by_role("tooltip")).to_be_visible()
    page.locator("#settings > summary").tap()
    page.get_by_text("As a table").tap()

    def wide() -> list[str]:
        return page.evaluate("""() => [...document.querySelectorAll("body *")]
            .filter(e => !e.closest(".scroll, .sr, .skip") && e.getBoundingClientRect().right > 360.5)
            .map(e => e.outerHTML.slice(0, 90))""")

    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert wide() == []
    page.get_by_role("tab", name="Side by side").tap()
    page.locator("#side-examples").get_by_role("button", name="A doubted answer").tap()
    answered(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert wide() == []
    small = page.evaluate("""() => [...document.querySelectorAll("button, input, select")].filter(e => e.offsetHeight
        && e.offsetHeight < 24).map(e => e.outerHTML)""")
    assert small == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 20, 24)"}[scheme]
    moving = page.evaluate("document.getAnimations().filter(each => each.playState === 'running').length")
    assert moving == 0


# -- which characters a token wrote --------------------------------------------------------------------

ALIGN = """async (cases) => {
    const {Alignment, codeUnits} = await import("/align.js");
    return cases.map(({tokens, texts, points}) => {
        const alignment = new Alignment();
        const pieces = [];
        texts.forEach((text, i) => {
            alignment.add(text, i < tokens.length ? [{index: i, text: tokens[i]}] : []);
            pieces.push(...alignment.advance());
        });
        pieces.push(...alignment.advance(true));
        return {pieces: pieces.map(({text, tokens}) => [text, tokens]), at: codeUnits(alignment.text, points)};
    });
}"""


def cut(text: str, luck: random.Random) -> tuple[dict[str, Any], list[set[int]]]:
    """`text` as tokens of a few bytes each, with the text that the server sends after each; each character's tokens."""
    raw = text.encode()
    ends = sorted({*luck.sample(range(1, len(raw)), k=luck.randrange(len(raw))), len(raw)})
    parts = [raw[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    stream = TextStream(lambda ids: b"".join(parts[i] for i in ids).decode(errors="replace"))
    texts = [stream.add(i) for i in range(len(parts))]
    owner = [i for i, part in enumerate(parts) for _ in part]
    owners, at = [], 0
    for letter in text:
        size = len(letter.encode())
        owners.append(set(owner[at : at + size]))
        at += size
    tokens = [part.decode(errors="replace") for part in parts]
    return {"tokens": tokens, "texts": [*texts, stream.end()], "points": luck.randrange(len(text) + 1)}, owners


def test_every_character_finds_its_tokens(open_page: Open):
    luck = random.Random(0)
    letters = "ab éü שם 你好 🦜👩🔬😀"
    texts = ["".join(luck.choices(letters, k=luck.randrange(1, 25))) for _ in range(500)]
    cases = [cut(text, luck) for text in texts]
    found = open_page().evaluate(ALIGN, [case for case, _ in cases])
    for text, (case, owners), got in zip(texts, cases, found, strict=True):
        assert "".join(piece for piece, _ in got["pieces"]) == text
        at = 0
        for piece, tokens in got["pieces"]:
            wrote = set.union(*owners[at : at + len(piece)])
            assert set(tokens) == wrote or len(wrote) > 8, (case, got)
            at += len(piece)
        assert len(text[: case["points"]].encode("utf-16-le")) // 2 == got["at"]


def test_tokens_that_do_not_line_up_lose_their_colour_not_the_text(open_page: Open):
    cases = [
        {"tokens": [" Hello", " world"], "texts": ["Hello", " world", ""], "points": 0},
        {"tokens": ["Hello", "world"], "texts": ["Hello", " world", ""], "points": 0},
        {"tokens": ["", "Hel", "lo END of"], "texts": ["", "Hel", "lo", ""], "points": 0},
        {"tokens": ["x"] * 20, "texts": [*["y"] * 20, ""], "points": 0},
        {"tokens": [], "texts": ["I don't know."], "points": 0},
        {"tokens": ["A", "<end>"], "texts": ["A", "", ""], "points": 0},
    ]
    found = [each["pieces"] for each in open_page().evaluate(ALIGN, cases)]
    assert found[0] == [["Hello", [0]], [" world", [1]]]
    assert found[1] == [["Hello", [0]], [" ", []], ["world", [1]]]
    assert found[2] == [["Hel", [1]], ["lo", [2]]]
    assert found[3] == [["y", [i]] for i in range(20)]
    assert found[4] == [["I don't know.", []]]
    assert found[5] == [["A", [0]]]


def test_the_page_is_in_the_package():
    folder = files("hneurons.live").joinpath("playground")
    names = {file.name for file in folder.iterdir()}
    page = folder.joinpath("index.html").read_text()
    assert {"index.html", "style.css", "app.js", "icon.svg", *re.findall(r'(?:src|href)="([^"#]+)"', page)} <= names
    for name in names:
        text = folder.joinpath(name).read_text()
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|eval\(|https?://(?!www\.w3\.org/2000/svg)", text
        )
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= names
        assert text.count("\n") <= 300
    assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", page)
