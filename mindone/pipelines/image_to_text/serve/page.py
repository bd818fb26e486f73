"""The web pages: each is one HTML document with its style and its script inside, and a policy that allows no other."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from ..dataset.prompts.styles import STYLES
from .options import ServerOptions

CHAT_SCRIPTS = ("texts", "common", "chat", "grid", "settings", "start")
REVIEW_SCRIPTS = ("texts", "common", "settings", "review", "review_cards", "review_actions", "review_start")


class Page(NamedTuple):
    """An HTML document.

    Attributes:
        content: UTF-8.
        headers: of its response; the Content-Security-Policy names the document's own style and script by their hashes.
    """

    content: bytes
    headers: Mapping[str, str]


def chat_page(options: ServerOptions) -> Page:
    """Return the page at `/`: chats, and captions of many images.

    Example:
        >>> from mindone.pipelines.image_to_text.serve.options import ServerOptions
        >>> from mindone.pipelines.image_to_text.serve.page import chat_page
        >>> chat_page(ServerOptions(model_name="sharegpt4v-7b")).content[:15]
        b'<!doctype html>'
    """
    return make_page("share4v", "page.html", CHAT_SCRIPTS, page_data(options))


def review_page(options: ServerOptions, has_model: bool) -> Page:
    """Return the page of `share4v review`; with a model it generates captions again."""
    return make_page("share4v review", "review.html", REVIEW_SCRIPTS, page_data(options, has_model))


def page_data(options: ServerOptions, has_model: bool = True) -> dict[str, Any]:
    """Return what a page needs to know of its server; anyone who can connect can read it, also without a key."""
    styles = [
        {
            "name": style.name,
            "prompt": style.prompt,
            "description": style.description,
            "max_new_tokens": style.max_new_tokens,
        }
        for style in STYLES.values()
    ]
    limits = options.limits
    return {"styles": styles, "max_images": limits.images, "max_batch": options.max_batch, "has_model": has_model}


def make_page(title: str, body: str, scripts: Sequence[str], data: Mapping[str, Any]) -> Page:
    """Return a document from its parts.

    Args:
        title: of the document.
        body: file in `static/` with what `page_shell.html`, the frame of all pages, has in its body.
        scripts: names of files in `static/`, which share one scope.
        data: JSON values for the script.
    """
    joined = "\n".join(_read(f"{name}.js") for name in scripts)
    script = f'"use strict";\n(() => {{\n{joined}\n}})();'
    style = _read("page.css")
    encoded = json.dumps(data).replace("<", "\\u003c")  # so that no text ends the element
    document = _read("page_shell.html")
    parts = {"title": title, "body": _read(body).rstrip(), "style": style, "data": encoded, "script": script}
    for name, text in parts.items():
        document = document.replace(f"{{{{{name}}}}}", text)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-cache",
    }
    return Page(document.encode(), headers)


def _read(name: str) -> str:
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
