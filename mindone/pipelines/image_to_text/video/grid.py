"""Several frames side by side in one picture."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


def make_grid(pictures: Iterable[PILImage], count: int) -> tuple[PILImage, tuple[int, int]]:
    """Lay `count` pictures of one size out in reading order, in as square a grid as holds them.

    Each is made smaller, so that the grid is no larger than one picture; places left over are black. One picture
    is held besides the grid.

    Returns:
        The grid, and the size (width, height) of the first picture.
    """
    from PIL import Image

    columns = isqrt(count - 1) + 1
    rows = ceil(count / columns)
    grid: PILImage | None = None
    cell, size = (0, 0), (0, 0)
    for number, picture in enumerate(pictures):
        if grid is None:
            size = picture.size
            cell = (max(1, size[0] // columns), max(1, size[1] // columns))
            grid = Image.new("RGB", (cell[0] * columns, cell[1] * rows))
        row, column = divmod(number, columns)
        small = picture if count == 1 else picture.resize(cell, Image.Resampling.LANCZOS)
        grid.paste(small, (column * cell[0], row * cell[1]))
    if grid is None:
        raise ValueError("there are no pictures to lay out")
    return grid, size
