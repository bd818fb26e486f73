"""Several frames arranged as a grid in one image."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


def make_grid(images: Iterable[PILImage], count: int) -> tuple[PILImage, tuple[int, int]]:
    """Arrange `count` images of one size in reading order, in a grid that is as square as possible.

    The images are downscaled so that the grid is at most as large as one of them; unused cells are black. Apart from
    the grid, only one image at a time is in memory.

    Returns:
        The grid, and the size (width, height) of the first image.

    Raises:
        ValueError: there are no images.
    """
    from PIL import Image

    columns = isqrt(count - 1) + 1
    rows = ceil(count / columns)
    grid: PILImage | None = None
    cell, size = (0, 0), (0, 0)
    for index, image in enumerate(images):
        if grid is None:
            size = image.size
            cell = (max(1, size[0] // columns), max(1, size[1] // columns))
            grid = Image.new("RGB", (cell[0] * columns, cell[1] * rows))
        row, column = divmod(index, columns)
        small = image if count == 1 else image.resize(cell, Image.Resampling.LANCZOS)
        grid.paste(small, (column * cell[0], row * cell[1]))
    if grid is None:
        raise ValueError("there are no images for the grid")
    return grid, size
