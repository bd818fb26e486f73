"""RepoOptions: which files of a repository are meant, and who asks for them."""

from __future__ import annotations

import re
from typing import NamedTuple

_REVISION = re.compile(r"[A-Za-z0-9][\w.+-]*(/[\w.+-]+)*")
_SUBFOLDER = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*")
_FILE = re.compile(r"[A-Za-z0-9_][\w.-]*")


class RepoOptions(NamedTuple):
    """Which files of a repository are meant, and who asks for them.

    Attributes:
        revision: a branch, a tag or a commit; None is the main branch.
        token: an access token of the hub; True uses the stored one, False none; None uses HF_TOKEN or the stored one.
        subfolder: the folder of the repository that holds the checkpoint; empty for the top.
        gguf: which of a repository's GGUF language models, as a quantization or a file's name; empty for the only one
            or the default.
        mmproj: name of its `mmproj` file; None for the only one or the one in F16, empty if none is needed.
        is_adapter: whether a LoRA adapter is meant, not a checkpoint.
    """

    revision: str | None = None
    token: str | bool | None = None
    subfolder: str = ""
    gguf: str = ""
    mmproj: str | None = None
    is_adapter: bool = False

    def check(self) -> None:
        """Check the values, which become parts of URLs and paths.

        Raises:
            ValueError: one is malformed.
        """
        rules = {"revision": _REVISION, "subfolder": _SUBFOLDER, "gguf": _FILE, "mmproj": _FILE}
        for name, pattern in rules.items():
            value = getattr(self, name)
            if value and (not isinstance(value, str) or not pattern.fullmatch(value) or ".." in value.split("/")):
                raise ValueError(f"{name} {value!r:.80} is malformed: give a name such as 'main', without spaces or ..")
        if self.token is not None and not isinstance(self.token, (str, bool)):
            raise ValueError(f"token must be a string, True or False, got a {type(self.token).__name__}")
