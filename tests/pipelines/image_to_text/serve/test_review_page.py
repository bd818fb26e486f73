"""`share4v review` in a headless Chromium: everything by the keyboard, on a job whose captions come from a test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Tab, chromium
from helpers.serving import SCENE, Live, serving
from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException
from selenium.webdriver.support.ui import Select

from mindone.pipelines.image_to_text import caption_dataset
from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS
from mindone.pipelines.image_to_text.serve.options import ServerOptions
from mindone.pipelines.image_to_text.serve.review_routes import Review

ESCAPE, CONTROL, ENTER, NULL = "\ue00c", "\ue009", "\ue007", "\ue000"
KEY = "review-key"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a finished job of 30 inputs, more than the page shows at once."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.png").write_bytes(SCENE.read_bytes())
    with monkeypatch.context() as patch:
        patch.setitem(EXECUTORS, "local", "helpers.echo_executor:EchoExecutor")
        caption_dataset(folder, out=str(tmp_path / "captions.jsonl"), prompt="Picture {stem} here")
    return tmp_path / "captions.jsonl"


@pytest.fixture
def reviewing(job: Path, tiny: Any) -> Iterator[Live]:
    review = Review(job, ServerOptions(model_name="m"), has_model=True)
    with serving(tiny, own_routes=review.routes(), api_keys=(KEY,)) as running:
        yield running
    assert review.close() is None


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("downloads")) as driver:
        yield Tab(driver)


def caption_of(job: Path, number: int) -> str | None:
    return json.loads(job.read_text().splitlines()[number])["caption"]  # type: ignore[no-any-return]


def test_a_review_by_keyboard(browser: Tab, reviewing: Live, job: Path, ask: Callable[..., str]) -> None:
    live = reviewing
    browser.resize(1280, 900)
    browser.driver.get(f"{live.url}/")
    browser.driver.execute_script("sessionStorage.setItem('share4v.key', arguments[0])", KEY)
    browser.open(f"{live.url}/")
    browser.errors()  # of the first request, which had no key

    def press(*keys: str) -> None:
        browser.driver.switch_to.active_element.send_keys(*keys)

    def badges() -> list[str]:
        return [str(one.get_property("textContent")) for one in browser.all(".badge")]

    def focused() -> str:
        return str(browser.driver.execute_script("return document.activeElement.closest('.card')?.id || ''"))

    browser.wait(lambda: len(browser.all(".card img:not([hidden])")) == 24)
    press_in(browser, "#card-0", "a")  # accept, and go on
    browser.wait(lambda: badges()[0] == "Accepted" and focused() == "card-1")
    press("r")
    browser.wait(lambda: badges()[1] == "Rejected" and focused() == "card-2")
    press("e")
    press(" and 猫", CONTROL, ENTER, NULL)
    browser.wait(lambda: badges()[2] == "Edited" and focused() == "card-2")
    press("j")
    press("e")
    press("not kept", ESCAPE)
    assert focused() == "card-3" and badges()[3] == "Unreviewed"
    browser.wait(lambda: "3 of 30 reviewed" in browser.text("#counts"))
    # A selection beyond the page: replace in all that a search finds, and undo it at once.
    press("/")
    press("Picture 2")
    browser.wait(lambda: len(browser.all(".card")) == 10)
    browser.click("#select-all")
    browser.click("#open-replace")
    browser.keys("#find", "here")
    browser.keys("#replacement", f"there{ENTER}")
    browser.wait(lambda: badges() == ["Edited"] * 10)
    press_in(browser, "#card-20", "u")
    browser.wait(lambda: badges() == ["Unreviewed"] * 10)
    # The outputs follow by themselves.
    browser.wait(lambda: browser.driver.execute_script("return document.body.dataset.unpublished") == "0")
    assert caption_of(job, 0) == "Picture 00 here" and caption_of(job, 1) is None
    assert caption_of(job, 2) == "Picture 02 here and 猫" and caption_of(job, 20) == "Picture 20 here"
    # Generate one again, with another prompt.
    browser.click("#select-none")
    press_in(browser, "#card-21", "g")
    browser.one("#again-prompt").clear()
    browser.keys("#again-prompt", "Describe this image")
    browser.click("#again-form .primary")
    browser.wait(lambda: badges()[1] == "Regenerated")
    expected = ask("Describe this image", max_new_tokens=384).strip()
    assert browser.one("#card-21 textarea").get_property("value") == expected
    for width in (1280, 390):
        for dark in (False, True):
            browser.resize(width, 844, dark)
            assert browser.faults() == []
    assert browser.errors() == []


# Holds the requests of captions until `release` is called.
HOLD = """
const send = window.fetch, gate = new Promise((resolve) => { window.release = resolve; });
window.fetch = async (path, options) => {
  if (path === "/v1/chat/completions") { window.held = (window.held || 0) + 1; await gate; }
  return send(path, options);
};
"""


def test_no_edit_is_lost(browser: Tab, reviewing: Live, job: Path) -> None:
    """An edit stays in its box while the server is away, has another caption, or generates one; the person decides."""
    live, key = reviewing, {"Authorization": f"Bearer {KEY}"}
    browser.resize(1280, 900)
    browser.driver.get(f"{live.url}/")
    browser.driver.execute_script("sessionStorage.setItem('share4v.key', arguments[0])", KEY)
    browser.open(f"{live.url}/")
    browser.errors()

    def text(card: int) -> str:
        return str(browser.one(f"#card-{card} textarea").get_property("value"))

    def badge(card: int) -> str:
        return browser.text(f"#card-{card} .badge")

    def write(card: int, words: str) -> None:
        press_in(browser, f"#card-{card}", "e")
        browser.wait(lambda: browser.all(f"#card-{card} textarea:focus"))
        browser.driver.switch_to.active_element.send_keys(words, CONTROL, ENTER, NULL)

    def change(card: int, words: str) -> None:
        """As another reviewer."""
        listing = live.post("/review/find", {}, headers=key).json()["listing"]
        body = {"changes": [{"number": card, "verdict": "edited", "captions": [words]}], "listing": listing}
        assert live.post("/review/changes", {**body, "reviewer": "another"}, headers=key).status_code == 200

    # The connection is lost: the text stays, also when another page of cards is shown.
    browser.driver.set_network_conditions(offline=True, latency=0, throughput=0)
    write(0, " at night")
    browser.wait(
        lambda: badge(0) == "Unsaved" and "cannot be reached" in browser.text("#card-0 .problem:not([hidden])")
    )
    browser.driver.delete_network_conditions()
    press_in(browser, "#card-0", "]")
    browser.wait(lambda: browser.all("#card-29"))
    assert text(0) == "Picture 00 here at night" and badge(0) == "Unsaved"
    press_in(browser, "#card-0", "a")  # what is not stored cannot be accepted
    browser.wait(lambda: "store or discard it first" in browser.text("#alert-text"))
    browser.click("#card-0 .save")
    browser.wait(lambda: badge(0) == "Edited" and not browser.all("#card-0 .unsaved:not([hidden])"))
    press_in(browser, "#card-0", "[")
    # Somebody else has changed the caption: both texts are shown.
    browser.wait(lambda: browser.all("#card-1"))
    change(1, "Theirs")
    write(1, " by day")
    browser.wait(lambda: browser.text("#card-1 .stored") == "It is now: Theirs")
    assert text(1) == "Picture 01 here by day" and badge(1) == "Unsaved"
    assert browser.faults() == []
    browser.click("#card-1 .discard")
    browser.wait(lambda: (text(1), badge(1)) == ("Theirs", "Edited"))
    change(2, "Theirs, too")
    write(2, " by day")
    browser.wait(lambda: browser.text("#card-2 .stored") == "It is now: Theirs, too")
    browser.click("#card-2 .save")
    browser.wait(lambda: (text(2), badge(2)) == ("Picture 02 here by day", "Edited"))
    # Captions are generated again while the person types into one, and somebody else edits another.
    browser.driver.execute_script(HOLD)
    for card in (3, 4):
        press_in(browser, f"#card-{card}", "x")
    press_in(browser, "#card-4", "g")
    browser.click("#again-form .primary")
    browser.wait(lambda: browser.all("#again-bar:not([hidden])"))
    press_in(browser, "#card-3", "e")
    browser.wait(lambda: browser.all("#card-3 textarea:focus"))
    typing = browser.driver.switch_to.active_element
    typing.send_keys(" half")
    browser.wait(lambda: browser.driver.execute_script("return window.held === 2"))
    change(4, "Theirs again")
    browser.driver.execute_script("release()")
    browser.wait(lambda: browser.all("#again-bar[hidden]"))
    assert browser.driver.switch_to.active_element == typing
    typing.send_keys(" typed")
    assert text(3) == "Picture 03 here half typed" and badge(3) == "Unsaved"
    assert browser.text("#card-3 .stored").startswith("It is now: ")
    assert "1 of 2 captioned · 1 failed" in browser.text("#again-status")
    browser.wait(lambda: (text(4), badge(4)) == ("Theirs again", "Edited"))
    browser.driver.switch_to.active_element.send_keys(ESCAPE)
    browser.wait(lambda: badge(3) == "Regenerated" and "half" not in text(3))
    # Undo takes back what was done here, not what the other reviewer did.
    for expected in (("none", 3), ("edited", 2)):
        press_in(browser, "#card-3", "u")
        browser.wait(lambda expected=expected: row(live, expected[1])["verdict"] == expected[0])
    assert [row(live, card)["captions"] for card in (1, 2, 4)] == [["Theirs"], ["Theirs, too"], ["Theirs again"]]


def press_in(browser: Tab, selector: str, key: str) -> None:
    browser.wait(lambda: pressed(browser, selector, key))


def pressed(browser: Tab, selector: str, key: str) -> bool:
    """Press a key in an element; False if the page is just drawing it anew, in which case nothing was pressed."""
    try:
        browser.one(selector).send_keys(key)
    except (ElementNotInteractableException, StaleElementReferenceException):
        return False
    return True


def test_one_of_several_captions_is_generated_again_by_the_rules(
    browser: Tab, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's rules and those of the style; the other caption, which a person has edited, stays."""
    name = "<img src=x onerror=window.hacked=1>"  # texts of a job are shown as text
    (tmp_path / f"{name}.png").write_bytes(SCENE.read_bytes())
    out = tmp_path / "captions.jsonl"
    with monkeypatch.context() as patch:
        patch.setitem(EXECUTORS, "local", "helpers.echo_executor:EchoExecutor")
        caption_dataset(
            tmp_path / f"{name}.png",
            out=str(out),
            prompt=["A cat", "One cat"],
            every_prompt=True,
            template="sks, {caption}",
            require=["cat"],
            attempts=1,
        )
    review = Review(out, ServerOptions(model_name="m"), has_model=True)
    with serving(tiny, own_routes=review.routes()) as running:
        browser.resize(1280, 900)
        browser.open(f"{running.url}/")
        browser.one("#card-0 textarea").send_keys(" by hand", CONTROL, ENTER, NULL)
        browser.wait(lambda: browser.text("#card-0 .badge") == "Edited")
        browser.answer("The image shows a dog. It sleeps.")
        press_in(browser, "#card-0", "g")
        Select(browser.one("#again-style")).select_by_value("one-sentence")
        Select(browser.one("#again-text")).select_by_visible_text("2")
        browser.click("#again-form .primary")
        browser.wait(lambda: browser.text("#card-0 .badge") == "Regenerated")
        problem = f"The new caption of {name} breaks a rule: required word missing: cat"
        browser.wait(lambda: problem in browser.text("#alert-text"))
        assert [one.get_property("value") for one in browser.all("#card-0 textarea")] == ["A cat by hand", "A dog."]
        assert browser.text("#card-0 .name") == name
        hacked = "return [window.hacked, document.querySelector('img[src=x]')]"
        assert browser.driver.execute_script(hacked) == [None, None]
    assert review.close() is None
    assert json.loads(out.read_text())["captions"] == ["sks, A cat by hand", "sks, A dog."]


def row(live: Live, number: int) -> Any:
    return live.post("/review/find", {}, headers={"Authorization": f"Bearer {KEY}"}).json()["rows"][number]


def test_routes_check_what_they_get(job: Path, tiny: Any) -> None:
    review = Review(job, ServerOptions(model_name="m"), has_model=False)
    with serving(None, own_routes=review.routes()) as running:
        assert running.post("/v1/chat/completions", {"messages": []}).json()["error"]["code"] == "no_model"
        for number in ("99", "9" * 15, "9" * 5000, "-1", "1e3", "x"):
            assert running.get(f"/review/image/{number}").status_code == 404
        image = running.get("/review/image/0")
        assert image.headers["cross-origin-resource-policy"] == "same-origin"  # no other page can show it
        styled = running.post("/apply_style", {"text": "The image shows a cat. It sleeps.", "style": "one-sentence"})
        assert styled.json() == {"text": "A cat.", "broken_rules": []}
        assert running.post("/apply_style", {"text": "A cat", "name": "nothing"}).status_code == 400
        assert running.get("/review/image/0?full=1").content == SCENE.read_bytes()
        listing = {"listing": running.post("/review/find", {}).json()["listing"]}
        change = {"number": 0, "verdict": "edited", "captions": ["New."], "shown": ["Another."]}
        for body, status, text in (
            ({"changes": [change]}, 409, "has changed since"),
            ({"changes": [{**change, "number": 99}]}, 404, "no record 99"),
            ({"changes": [{**change, "shown": None, "captions": [" "]}]}, 400, "must not be empty"),
            ({"changes": [{**change, "verdict": "none"}]}, 400, "changes[0].verdict must be one of"),
            ({"changes": [{**change, "path": "/etc"}]}, 400, "changes[0].path"),
            ({"changes": [3]}, 400, "must be an object"),
            ({"changes": [change], "listing": "earlier"}, 409, "listed its inputs again"),
        ):
            refused = running.post("/review/changes", {**listing, **body})
            assert refused.status_code == status and text in refused.json()["error"]["message"]
        assert running.post("/review/undo", {}, headers={"Origin": "https://evil.example"}).status_code == 403
        assert running.post("/review/undo", {}).json() == {"count": 0, "rows": []}
        found = running.post("/review/find", {"search": "picture 07", "count": 5}).json()
        assert found["numbers"] == [7] and found["rows"][0]["verdict"] == "none"
        assert running.get("/review/image/0?key=01").status_code == 404
        assert "listing" in running.post("/review/changes", {"changes": [change]}).json()["error"]["message"]
        seven = {"number": 7, "verdict": "edited", "captions": ["Seven."]}
        assert running.post("/review/changes", {"changes": [seven], **listing}).json()["count"] == 1
    assert review.close() is None  # the end of the server publishes what the pause has not
    assert caption_of(job, 7) == "Seven."
