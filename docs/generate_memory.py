"""Writes the memory table of docs/hardware.md, computed from the models' configs: `python docs/generate_memory.py`.

A test fails if the table is outdated.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mindone.models.share4v import ProjectorConfig, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.device_memory import device_memory

PAGE = Path(__file__).with_name("hardware.md")
START, END = "<!-- memory table: python docs/generate_memory.py -->", "<!-- end of the memory table -->"
VISION = VisionConfig(1024, 4096, 24, 16, image_size=336, patch_size=14)  # CLIP ViT-L/14
PROJECTOR = ProjectorConfig("mlp2x_gelu")
MODELS = {
    "7B": Share4VConfig(VISION, PROJECTOR),
    "13B": Share4VConfig(VISION, PROJECTOR, TextConfig(32000, 5120, 13824, 40, 40)),
}
DTYPES = {"float16, bfloat16": "float16", "int8": "int8", "int4": "int4"}
CONTEXTS = (2048, 4096)
BATCHES = (1, 4, 16)
# Card -> its memory in GB, and the types that are documented for it.
CARDS = {
    "910A, 32 GB": (32, {"float16": "float16"}),
    "910B, 32 GB": (32, DTYPES),
    "910B, 64 GB": (64, DTYPES),
}
RESERVED = 2  # GiB, assumed for the driver, MindSpore and workspaces
GIB = 2**30


def table() -> str:
    """Return the two tables: memory by batch and context, and the largest batches."""
    return "\n".join([*sizes(), "", *largest()])


def sizes() -> Iterator[str]:
    """Yield the rows of the table of memory."""
    columns = [f"{batch} x {context:,}" for context in CONTEXTS for batch in BATCHES]
    yield f"| model | dtype | weights | {' | '.join(columns)} |"
    yield "|---|---|---" + "|---" * len(columns) + "|"
    for model, config in MODELS.items():
        for name, dtype in DTYPES.items():
            found = [device_memory(config, dtype, batch, context) for context in CONTEXTS for batch in BATCHES]
            cells = [gibibytes(memory.total) for memory in found]
            yield f"| {model} | {name} | {gibibytes(found[0].weights)} | {' | '.join(cells)} |"


def largest() -> Iterator[str]:
    """Yield the rows of the table of the largest batches."""
    yield f"| card | model | dtype | {' | '.join(f'{context:,}' for context in CONTEXTS)} |"
    yield "|---|---|---" + "|---" * len(CONTEXTS) + "|"
    for card, (memory, dtypes) in CARDS.items():
        for model, config in MODELS.items():
            for name, dtype in dtypes.items():
                cells = [largest_batch(config, dtype, memory, context) for context in CONTEXTS]
                yield f"| {card} | {model} | {name} | {' | '.join(str(cell or 'none') for cell in cells)} |"


def largest_batch(config: Share4VConfig, dtype: str, card: int, context: int) -> int:
    """Return the largest number of sequences whose memory fits a card of `card` GiB, 0 if none does."""
    room = (card - RESERVED) * GIB
    batch = 0
    while device_memory(config, dtype, batch + 1, context).total <= room:
        batch += 1
    return batch


def gibibytes(count: int) -> str:
    """Return a number of bytes in GiB with one decimal."""
    return f"{count / GIB:.1f}"


def page(text: str) -> str:
    """Return the page's text with the current table between the marks."""
    before, rest = text.split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
