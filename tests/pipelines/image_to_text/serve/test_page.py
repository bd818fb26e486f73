"""The page at /, in a headless Chromium against a live server; and what holds for it without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Tab, chromium
from helpers.paths import ROOT
from helpers.serving import SCENE, Live, serving
from selenium.webdriver.support.ui import Select

STATIC = ROOT / "mindone" / "pipelines" / "image_to_text" / "serve" / "static"
HOSTILE = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'
DESCRIBE, BACKGROUND = "Describe this image", "What is in the background?"


def test_it_is_one_file_that_loads_nothing(live: Live) -> None:
    response = live.get("/")
    text, policy = response.text, response.headers["content-security-policy"]
    assert response.headers["content-type"] == "text/html; charset=utf-8" and "{{" not in text
    attributes: list[tuple[str, str | None]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, found: attributes.extend(found)  # type: ignore[method-assign]
    parser.feed(text)
    assert {value for name, value in attributes if name in ("src", "href")} == {"#main", "data:,"}
    assert not {name for name, _ in attributes if name.startswith("on") or name == "style"}
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://", text)


def test_every_text_exists_in_both_languages() -> None:
    texts = {
        key: (english, chinese)
        for key, english, chinese in re.findall(
            r'^  "([\w-]+)": \["(.+)", "(.+)"\],$', (STATIC / "texts.js").read_text(), re.MULTILINE
        )
    }
    sources = "".join(path.read_text() for path in sorted(STATIC.iterdir()) if path.name != "texts.js")
    used = set(re.findall(r'data-(?:text|label|placeholder|title)="([\w-]+)"|\bt\("([\w-]+)"', sources))
    names = {one or other for one, other in used}
    assert len(texts) > 80 and not names - texts.keys()
    assert not {key for key in texts if f'"{key}"' not in sources}, "texts that nothing shows"
    for english, chinese in texts.values():
        assert set(re.findall(r"\{\d\}", english)) == set(re.findall(r"\{\d\}", chinese))


@pytest.fixture
def ask_pipeline(ask: Callable[..., str]) -> Callable[..., str]:
    """What the pipeline answers with the page's settings."""
    return lambda question: ask(question, max_new_tokens=384)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Tab]:
    with chromium(downloads) as driver:
        yield Tab(driver)


@pytest.fixture
def tab(browser: Tab, live: Live) -> Iterator[Tab]:
    """The page without any history; whatever a test does, no error may reach the console."""
    browser.resize(1280, 800)
    browser.open(f"{live.url}/")
    clear = "indexedDB.deleteDatabase('share4v'); localStorage.clear(); sessionStorage.clear()"
    browser.driver.execute_script(clear)
    browser.open(f"{live.url}/")
    browser.errors()
    yield browser
    assert browser.errors() == []


def answers(tab: Tab) -> list[str]:
    """The answers that are complete."""
    return [one.text for one in tab.all(".message.assistant:has(.tools) .body")]


def send(tab: Tab, question: str, image: Path | None = None) -> str:
    count = len(answers(tab))
    if image is not None:
        tab.keys("#files", str(image))
        tab.wait(lambda: tab.all("#attached img"))
    tab.keys("#question", f"{question}\n")
    tab.wait(lambda: len(answers(tab)) == count + 1)
    return answers(tab)[-1]


def downloaded(tab: Tab, downloads: Path, name: str) -> Path:
    return Path(tab.wait(lambda: [path for path in downloads.glob(name) if path.stat().st_size])[0])


def test_a_chat(tab: Tab, live: Live, downloads: Path, ask_pipeline: Callable[..., str]) -> None:
    expected = ask_pipeline(DESCRIBE)
    assert send(tab, DESCRIBE, SCENE) == expected
    assert re.search(r"\d+ tokens · [\d.,]+/s · first after [\d.]+ s", tab.text(".message.assistant .info"))
    follow_up = send(tab, BACKGROUND)
    # Retry adds a version; editing the first question starts a branch, and the other branch remains.
    tab.wait(lambda: tab.all(".message.assistant button")[-1].click() or True)  # again if it was drawn anew meanwhile
    tab.wait(lambda: "2 of 2" in tab.text(".message.assistant:last-child"))
    tab.wait(lambda: answers(tab) == [expected, follow_up])
    tab.wait(lambda: tab.all(".message.user button")[1].click() or True)
    tab.wait(lambda: tab.driver.switch_to.active_element.get_property("value") == DESCRIBE)
    tab.driver.switch_to.active_element.send_keys("!\n")
    tab.wait(lambda: answers(tab) == [ask_pipeline(f"{DESCRIBE}!")])
    tab.click(".message.user [aria-label='Previous version']")
    tab.wait(lambda: answers(tab) == [expected, follow_up])
    # The history outlives the page, and its export restores it in another browser.
    tab.open(f"{live.url}/")
    tab.wait(lambda: answers(tab) == [expected, follow_up] and tab.all(".message.user img"))
    tab.click("#export")
    exported = downloaded(tab, downloads, "share4v-history.json")
    tab.click("[aria-label^='Delete the chat']")
    tab.wait(lambda: not tab.all(".message"))
    tab.keys("#import", str(exported))
    tab.wait(lambda: tab.all("#chats li")).pop().find_element("css selector", ".open").click()
    tab.wait(lambda: answers(tab) == [expected, follow_up])
    tab.wait(lambda: tab.driver.execute_script("return document.querySelector('.message img').naturalWidth") > 0)
    (downloads / "bad.json").write_text(json.dumps({"format": "share4v history 1", "chats": [{}], "images": {}}))
    tab.keys("#import", str(downloads / "bad.json"))
    tab.wait(lambda: "not an exported history" in tab.text("#alert"))
    # An imported tree with a loop, parents that do not exist and half an index is repaired.
    history = json.loads(exported.read_text())
    history["chats"][0]["title"] = "Looped"
    for name, node in history["chats"][0]["nodes"].items():
        node.update(parent="gone", selected=node["selected"] + 0.5, children=[*node["children"], name, "root"])
    (downloads / "looped.json").write_text(json.dumps(history))
    tab.keys("#import", str(downloads / "looped.json"))
    tab.wait(lambda: tab.text("#chats .open") == "Looped")
    tab.open(f"{live.url}/")
    tab.wait(lambda: answers(tab) == [expected, follow_up])


def test_stop_frees_the_slot(tab: Tab, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = live.service.model.engine
    gate, step = threading.Event(), engine.step
    cancelled = live.metric("share4v:requests_cancelled_total")
    monkeypatch.setattr(engine, "step", lambda: (gate.wait(300), step())[1])
    try:
        tab.keys("#question", "Hello\n")
        tab.wait(lambda: "waiting" in tab.text("#status"))
        tab.click("#stop")
        tab.wait(lambda: tab.text(".message.assistant .info") == "Stopped")
    finally:
        gate.set()
    tab.wait(lambda: live.metric("share4v:requests_cancelled_total") == cancelled + 1)
    tab.wait(lambda: live.metric("vllm:num_requests_running") == 0)


def test_what_is_deleted_stays_deleted(tab: Tab, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = live.service.model.engine
    gate, step = threading.Event(), engine.step
    monkeypatch.setattr(engine, "step", lambda: (gate.wait(300), step())[1])
    try:
        tab.keys("#question", "Hello\n")
        tab.wait(lambda: "waiting" in tab.text("#status"))
        tab.click("[aria-label^='Delete the chat']")
        tab.wait(lambda: tab.all("#send:not([hidden])") and not tab.all(".message"))
        tab.click("#view-grid")
        tab.keys("#grid-files", str(SCENE))
        tab.click("#caption-all:not([disabled])")
        tab.wait(lambda: tab.text(".card .info"))
        tab.click(".card [aria-label^='Remove']")
        tab.wait(lambda: not tab.all(".card"))
    finally:
        gate.set()
    tab.wait(lambda: tab.all("#caption-all:not([hidden])"))
    tab.open(f"{live.url}/")
    assert not tab.all(".card") and not tab.all("#chats li")


ENTER_TWICE = """
for (let time = 0; time < 2; time++) {
  arguments[0].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));
}
"""


def test_full_storage_and_enter_twice(tab: Tab) -> None:
    full = "IDBObjectStore.prototype.put = () => { throw new DOMException('', 'QuotaExceededError'); }"
    tab.driver.execute_script(full)
    tab.keys("#files", str(SCENE))
    tab.wait(lambda: tab.all("#attached img"))
    tab.keys("#question", "Hello")
    tab.driver.execute_script(ENTER_TWICE, tab.one("#question"))
    tab.wait(lambda: len(answers(tab)) == 1)
    assert len(tab.all(".message.user")) == 1 and tab.all(".message.user img")
    assert "could not store" in tab.text("#alert")
    tab.all(".message.user button")[1].click()
    tab.driver.execute_script(ENTER_TWICE, tab.driver.switch_to.active_element)
    tab.wait(lambda: "2 of 2" in tab.text(".message.user") and len(answers(tab)) == 1)
    tab.click("#view-grid")
    tab.keys("#grid-files", f"{SCENE}\n{SCENE}")
    tab.wait(lambda: len(tab.all(".card")) == 2)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_images_are_dropped_and_pasted(tab: Tab, event: str) -> None:
    tab.drop(SCENE, event)
    tab.wait(lambda: len(tab.all("#attached img")) == 1)
    assert "1 files were left out" in tab.text("#alert")
    tab.click("#attached button")
    assert not tab.all("#attached img")


def test_many_images(tab: Tab, downloads: Path, tmp_path: Path, ask_pipeline: Callable[..., str]) -> None:
    folder = tmp_path / "scenes"
    for name in ("a.png", "b/a.png", "cat.jpg", "cat.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(SCENE.read_bytes())
    (folder / "notes.txt").write_text("not an image")
    tab.click("#view-grid")
    tab.keys("#grid-folder", str(folder))
    tab.wait(lambda: len(tab.all(".card")) == 4)
    tab.click("#caption-all")
    captions = tab.wait(lambda: [one.get_property("value") for one in tab.all(".card textarea")])
    tab.wait(lambda: "4 captions" in tab.text("#grid-status"))
    captions = [one.get_property("value") for one in tab.all(".card textarea")]
    assert captions == [ask_pipeline(DESCRIBE)] * 4
    tab.keys(".card textarea", " Edited: 猫.\t")
    tab.click("#save-txt")
    with zipfile.ZipFile(downloaded(tab, downloads, "captions.zip")) as archive:
        assert archive.testzip() is None
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert set(texts) == {f"scenes/{name}.txt" for name in ("a", "b/a", "cat.jpg", "cat.png")}
    assert sorted(texts.values(), key=len) == [*[f"{captions[0]}\n"] * 3, f"{captions[0]} Edited: 猫.\n"]
    tab.click("#save-jsonl")
    lines = downloaded(tab, downloads, "captions.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"source", "caption", "prompts"}] * 4
    # The rules of a style are applied, as share4v caption-dataset does; those that are broken are named.
    tab.answer("The image shows a cat. It sleeps.")
    Select(tab.one("#grid-style")).select_by_value("one-sentence")
    tab.one(".card .tools button").click()
    tab.wait(lambda: tab.one(".card textarea").get_property("value") == "A cat.")
    tab.answer("A red square, " * 40)
    Select(tab.one("#grid-style")).select_by_value("tags")
    tab.one(".card .tools button").click()
    tab.wait(lambda: tab.one(".card textarea").get_property("value") == "a red square")
    Select(tab.one("#grid-style")).select_by_value("detailed")
    tab.one(".card .tools button").click()
    tab.wait(lambda: "breaks a rule: repetition" in tab.text(".card .info"))
    # Where the browser writes into a folder, a full disk is shown.
    full = """Object.defineProperty(navigator, "webdriver", { value: false });
        const getDirectoryHandle = async () => { throw new Error("the disk is full"); };
        window.showDirectoryPicker = async () => ({ getDirectoryHandle });"""
    tab.driver.execute_script(full)
    tab.click("#save-txt")
    tab.wait(lambda: "could not be saved: the disk is full" in tab.text("#alert"))


def test_cross_site_scripting_texts_are_shown_as_text(tab: Tab, tmp_path: Path) -> None:
    """What the model, a person, a file's name and an imported history say."""
    picture = tmp_path / f"{HOSTILE.replace('/', '')}.png"
    picture.write_bytes(SCENE.read_bytes())
    tab.answer(HOSTILE)
    tab.keys("#question", f"{HOSTILE}\n")
    tab.wait(lambda: [str(one.get_property("textContent")) for one in tab.all(".message .body")] == [HOSTILE] * 2)
    node = {"role": "<b>", "text": HOSTILE, "info": HOSTILE, "images": [], "children": [], "parent": "root"}
    root = {**node, "role": "root", "children": [HOSTILE]}
    chat = {"id": HOSTILE, "title": HOSTILE, "updated": 2**53, "nodes": {"root": root, HOSTILE: node}}
    history = tmp_path / "history.json"
    history.write_text(json.dumps({"format": "share4v history 1", "chats": [chat], "images": {}}))
    tab.keys("#import", str(history))
    tab.wait(lambda: [one.text for one in tab.all("#chats .open")] == [HOSTILE, HOSTILE[:60]])
    tab.click("#chats .open")
    tab.wait(lambda: tab.text(".message .info") == HOSTILE)
    tab.click("#view-grid")
    tab.keys("#grid-files", str(picture))
    tab.click("#caption-all")
    tab.wait(lambda: tab.one(".card textarea").get_property("value") == HOSTILE)
    assert tab.text(".card .name") == picture.name
    assert tab.driver.execute_script("return [window.hacked, document.querySelector('img[src=x]')]") == [None, None]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_legible_and_named(tab: Tab, width: int, dark: bool) -> None:
    send(tab, DESCRIBE, SCENE)
    tab.resize(width, 844, dark)
    for view in ("#view-chat", "#view-grid"):
        tab.click(view)
        assert tab.faults() == []


def test_chinese(tab: Tab) -> None:
    tab.click("#open-settings")
    tab.keys("#set-language", "中文")
    tab.keys("#set-language", "\ue00c")  # Escape
    assert tab.driver.execute_script("return document.documentElement.lang") == "zh"
    assert (tab.text("#send"), tab.text("#new-chat")) == ("发送", "新对话")
    assert tab.driver.switch_to.active_element.get_attribute("id") == "open-settings"


def test_the_key_is_entered_in_the_page(browser: Tab, tiny: Any) -> None:
    with serving(tiny, api_keys=("first-key",)) as guarded:
        assert guarded.get("/v1/models").status_code == 401
        browser.open(f"{guarded.url}/")
        browser.wait(lambda: browser.text("#server") == "API key needed")
        browser.keys("#question", "Hello\n")
        browser.wait(lambda: "asks for an API key" in browser.text(".message.assistant .problem"))
        browser.click("#open-settings")
        browser.keys("#set-key", "first-key\n")
        browser.wait(lambda: browser.text("#server") == "sharegpt4v-tiny")
        assert browser.driver.execute_script("return [Object.values(localStorage).join().includes('first-key')]") == [
            False
        ]
        send(browser, "Hello")
    browser.keys("#question", "Hello\n")
    browser.wait(lambda: "cannot be reached" in browser.text(".message.assistant:last-child"))
