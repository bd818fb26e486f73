"""Base class of the cells that are compiled to graphs and run outside training."""

from __future__ import annotations

from typing import Any

from mindspore import nn

from ..concurrency import MINDSPORE, check_process, is_forked


class Graph(nn.Cell):
    """A cell called with `compile_and_run`, from any thread, whose parts keep the names of their weights."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)

    def compile_and_run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph, which is compiled first if there is none for arguments of these shapes and dtypes.

        Raises:
            ForkError: this process was forked from one that uses models.
        """
        check_process()
        with MINDSPORE:
            return super().compile_and_run(*args, **kwargs)

    def __del__(self) -> None:
        """Free the compiled graph, in whichever thread the garbage collector runs."""
        if is_forked():  # the lock may be held by a thread that does not exist here
            return
        with MINDSPORE:
            super().__del__()
