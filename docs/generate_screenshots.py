"""Take the screenshots in docs/assets, of sharegpt4v-tiny: `python docs/generate_screenshots.py [page|report]`.

`page` are those of the server's pages, `report` those of the tutorial about captions for training. Needs the extra
`test` and the distribution's chromium and chromium-driver.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.browser import Tab, chromium  # noqa: E402
from helpers.serving import MODEL, SCENE, serving  # noqa: E402

from mindone.pipelines import pipeline  # noqa: E402
from mindone.pipelines.image_to_text import caption_dataset  # noqa: E402
from mindone.pipelines.image_to_text.base import Pipeline  # noqa: E402
from mindone.pipelines.image_to_text.serve.options import ServerOptions  # noqa: E402
from mindone.pipelines.image_to_text.serve.review_routes import Review  # noqa: E402

ASSETS = ROOT / "docs" / "assets"
WIDTH, HEIGHT = 1100, 700
MAX_BYTES = 150_000
TUTORIAL = ROOT / "docs" / "tutorials" / "training_captions.md"
# What a Python block of the tutorial has from those before it.
SHARED = """
import json
from pathlib import Path

rows = [json.loads(line) for line in open("train/metadata.jsonl")]
"""
# Scrolls to the heading of a level that begins with a text, and opens the details below it.
TO_HEADING = """
const found = [...document.querySelectorAll(arguments[0])].find((one) => one.textContent.startsWith(arguments[1]));
for (const one of found.parentElement.querySelectorAll(":scope > details")) one.open = true;
scrollTo(0, found.getBoundingClientRect().top + scrollY - 16);
"""
# Whether the images that are in view were decoded: the report's load when they are scrolled to.
IS_LOADED = """
return [...document.images].every((one) => one.complete || one.getBoundingClientRect().top > innerHeight);
"""


def save(tab: Tab, name: str) -> None:
    """Save what the browser shows."""
    image = Image.open(io.BytesIO(tab.driver.get_screenshot_as_png())).convert("RGB")
    image.save(ASSETS / f"{name}.webp", quality=85, method=6)
    size = (ASSETS / f"{name}.webp").stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{name}.webp has {size:,} bytes, expected at most {MAX_BYTES:,}: show less")


def scenes(folder: Path, number: int) -> list[Path]:
    """Write variants of the scene: mirrored and turned."""
    scene = Image.open(SCENE)
    turns = (None, *Image.Transpose)
    paths = [folder / f"scene-{index + 1}.png" for index in range(number)]
    for path, turn in zip(paths, turns, strict=False):
        (scene if turn is None else scene.transpose(turn)).save(path)
    return paths


def show_page(tab: Tab, url: str, folder: Path) -> None:
    """Show a chat, and the grid."""
    tab.open(f"{url}/")
    tab.keys("#files", str(SCENE))
    tab.wait(lambda: tab.all("#attached img"))
    tab.keys("#question", "Describe this image\n")
    tab.wait(lambda: tab.all(".message.assistant .info"))
    save(tab, "page_chat")
    tab.click("#view-grid")
    tab.keys("#grid-files", "\n".join(map(str, scenes(folder, 6))))
    tab.wait(lambda: len(tab.all(".card")) == 6)
    tab.click("#caption-all")
    tab.wait(lambda: "6 captions" in tab.text("#grid-status"))
    save(tab, "page_captions")


def show_review(tab: Tab, server_options: ServerOptions, folder: Path, loaded: Pipeline) -> None:
    """Show the review of a small job."""
    inputs = folder / "scenes"
    inputs.mkdir()
    scenes(inputs, 8)
    caption_dataset(inputs, out=str(folder / "captions.jsonl"), model=MODEL)
    review = Review(folder / "captions.jsonl", server_options, has_model=True)
    with serving(loaded, own_routes=review.routes()) as server:
        tab.open(f"{server.url}/")
        tab.wait(lambda: len(tab.all(".card img:not([hidden])")) == 8)
        tab.one("#card-0").send_keys("a")
        tab.wait(lambda: tab.all(".badge.accepted"))
        tab.one("#card-1").send_keys("r")
        tab.wait(lambda: tab.all(".badge.rejected"))
        save(tab, "page_review")
    review.close()


def show_report(tab: Tab, folder: Path) -> None:
    """Show parts of the report of the tutorial's job, after running the tutorial's commands up to it."""
    text = TUTORIAL.read_text(encoding="utf-8").partition("share4v report")[0]
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    earlier = ""  # the Python blocks of the page share their names
    for language, code in blocks:
        if language == "python" and ("Image.new" in code or "tokenizer" in code):
            subprocess.run([sys.executable, "-c", earlier + code], cwd=folder, check=True)
            earlier = SHARED
        elif language == "bash" and "--dry-run" not in code:
            shell = code.replace("share4v ", f"{sys.executable} -m mindone_share4v ")
            subprocess.run(["bash", "-ec", shell], cwd=folder, check=True)
    command = ["report", "train", "--trigger", "zwx", "--html", "report.html"]
    subprocess.run([sys.executable, "-m", "mindone_share4v", *command], cwd=folder, check=True)
    for name, level, heading in (
        ("report_lengths", "h2", "Length and speed"),
        ("report_words", "h2", "Words"),
        ("report_copies", "h3", "Near-equal images"),
    ):
        tab.driver.get((folder / "report.html").as_uri())
        tab.driver.execute_script(TO_HEADING, level, heading)
        tab.wait(lambda: tab.driver.execute_script(IS_LOADED))
        save(tab, name)


def main() -> None:
    """Take the screenshots that the command line names, or all."""
    asked = sys.argv[1:] or ["page", "report"]
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as driver:
        tab = Tab(driver)
        tab.resize(WIDTH, HEIGHT)
        if "page" in asked:
            loaded = pipeline("image-text-to-text", model=MODEL)
            with serving(loaded) as server:
                show_page(tab, server.url, Path(folder))
                show_review(tab, ServerOptions(model_name=MODEL), Path(folder), loaded)
        if "report" in asked:
            show_report(tab, Path(folder))


if __name__ == "__main__":
    main()
