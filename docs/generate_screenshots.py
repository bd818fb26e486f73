"""Take the screenshots of the server's pages in docs/assets, of sharegpt4v-tiny: `python docs/generate_screenshots.py`.

Needs the extra `test` and the distribution's chromium and chromium-driver.
"""

from __future__ import annotations

import io
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


def main() -> None:
    """Take all screenshots."""
    loaded = pipeline("image-text-to-text", model=MODEL)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(loaded) as server,
        chromium(Path(folder)) as driver,
    ):
        tab = Tab(driver)
        tab.resize(WIDTH, HEIGHT)
        show_page(tab, server.url, Path(folder))
        show_review(tab, ServerOptions(model_name=MODEL), Path(folder), loaded)


if __name__ == "__main__":
    main()
