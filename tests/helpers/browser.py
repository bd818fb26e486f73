"""A headless Chromium of the distribution, driven by selenium."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from helpers.programs import find_program

SECONDS = 300  # ends a wait that hangs
# Texts whose contrast (as in WCAG) is below 4.5; controls without a name that a screen reader could say; images
# without a text; and whether the page is wider than its window.
FAULTS = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const colour = rgb(getComputedStyle(one).backgroundColor);
    if (colour[3] !== 0) return colour;
  }
  return [255, 255, 255];
};
const visible = (selector) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility());
const faults = [];
for (const one of visible("button, a, label, span, p, h1, h2, .body, textarea, select, input")) {
  if (one.disabled || one.closest(".hidden") || !(one.textContent.trim() || one.value)) continue;
  const [high, low] = [light(rgb(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
  const contrast = (high + 0.05) / (low + 0.05);
  if (contrast < 4.5) faults.push(`contrast ${contrast}: ${one.outerHTML.slice(0, 80)}`);
}
for (const one of visible("button, input, select, textarea, a[href]")) {
  const labels = [...(one.labels || [])].map((label) => label.textContent);
  const names = [one.textContent, one.getAttribute("aria-label") || "", ...labels];
  if (!names.some((name) => name.trim())) faults.push(`no name: ${one.outerHTML.slice(0, 80)}`);
}
for (const one of visible("img:not([alt])")) faults.push(`no text: ${one.outerHTML.slice(0, 80)}`);
if (document.documentElement.scrollWidth > innerWidth) faults.push(`${document.documentElement.scrollWidth} px wide`);
return faults;
"""
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "scene.png", { type: "image/png" }));
transfer.items.add(new File(["text"], "notes.txt", { type: "text/plain" }));
const options = { bubbles: true, cancelable: true };
document.body.dispatchEvent(arguments[1] === "paste"
  ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
  : new DragEvent("drop", { ...options, dataTransfer: transfer }));
"""

# The model's next answers are a text.
ANSWER = """
const send = window.realFetch ||= window.fetch, text = arguments[0];
window.fetch = async (path, options) => {
  if (path !== "/v1/chat/completions") return send(path, options);
  const choice = { index: 0, delta: { content: text }, finish_reason: "stop" };
  return new Response(`data: ${JSON.stringify({ choices: [choice] })}\\n\\ndata: [DONE]\\n\\n`);
};
"""


@contextmanager
def chromium(downloads: Path, language: str = "en-US") -> Iterator[Chrome]:
    """Run a browser inside the `with` block.

    Args:
        downloads: folder that files are saved to.
        language: that it asks pages for.
    """
    options = ChromeOptions()
    options.binary_location = find_program(("chromium", "chromium-browser", "google-chrome"), "chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-proxy-server",
        "--force-prefers-reduced-motion",
        f"--lang={language}",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(find_program(("chromedriver",), "chromium-driver")))
    try:
        yield driver
    finally:
        driver.quit()


class Tab:
    """The page in a browser, for tests.

    Args:
        driver: the browser.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load a page, and wait until its script has started."""
        self.driver.get(url)
        self.wait(lambda: self.all("body[data-ready]"))

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Show the page in a window of this size in CSS pixels, in light or dark."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Return what `condition` returns once it is true."""
        # An element may be replaced between being found and being read: then the condition is tried again.
        wait = WebDriverWait(self.driver, SECONDS, 0.05, (StaleElementReferenceException,))
        return wait.until(lambda _: condition())

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Return the first element of a CSS selector, once it exists."""
        return self.wait(lambda: self.all(selector))[0]

    def text(self, selector: str) -> str:
        """Return the text of an element, also of one that is not visible."""
        return str(self.one(selector).get_property("textContent"))

    def keys(self, selector: str, *keys: str) -> None:
        """Send keys to an element."""
        self.one(selector).send_keys(*keys)

    def click(self, selector: str) -> None:
        """Click an element."""
        self.one(selector).click()

    def drop(self, image: Path, event: str) -> None:
        """Drop or paste ("drop", "paste") an image and a file that is none."""
        self.driver.execute_script(DROP, base64.b64encode(image.read_bytes()).decode(), event)

    def answer(self, text: str) -> None:
        """Let the page get this text from the model from now on."""
        self.driver.execute_script(ANSWER, text)

    def faults(self) -> list[str]:
        """Return what is illegible, has no name, or does not fit into the window."""
        return list(self.driver.execute_script(FAULTS))

    def errors(self) -> list[str]:
        """Return what the browser's console has as errors, violations of the policy among them."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
