"""Fixtures for the code on documentation pages: a small checkpoint that stands in for `sharegpt4v-7b`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.adapters import write_adapter
from helpers.pages.document import ROOT
from helpers.pages.stand_in import write_mirror, write_original
from helpers.warm_processes import WarmProcesses

from mindone.models.share4v import Share4VConfig

TINY = ROOT / "mindone" / "models" / "share4v" / "assets" / "sharegpt4v-tiny"


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without logging requests."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and its vision tower in the original layout, and a LoRA adapter for it."""
    folder = tmp_path_factory.mktemp("originals")
    write_original(TINY, folder)
    write_adapter(folder / "my-lora", Share4VConfig.from_pretrained(TINY).text_config)
    return folder


@pytest.fixture(scope="session")
def environment(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables with which the names of the real checkpoints lead to the small one.

    Only documented variables are set (docs/checkpoints.md); connections to other machines fail. `python` and `share4v`
    are the real programs in processes that begin with MindSpore imported.
    """
    mirror = tmp_path_factory.mktemp("mirror")
    write_mirror(originals, mirror)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mirror)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    nowhere = "http://127.0.0.1:9"  # nothing listens on the `discard` port, so a block that needs another host fails
    variables = {
        **os.environ,
        "SHARE4V_HOME": str(tmp_path_factory.mktemp("home")),
        "SHARE4V_MIRROR": address,
        "HF_ENDPOINT": f"{address}/hub",
        "OMP_NUM_THREADS": "1",  # the models are too small for more threads
        "HTTPS_PROXY": nowhere,
        "https_proxy": nowhere,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
    commands = tmp_path_factory.mktemp("commands")
    warm = WarmProcesses(commands, variables)
    yield {**variables, "PATH": os.pathsep.join((str(commands), variables["PATH"]))}
    warm.close()
    server.shutdown()
    server.server_close()
    thread.join()
