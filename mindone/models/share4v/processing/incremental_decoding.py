"""An incremental decoder of sentencepiece ids."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes ids one by one, in whole characters; all results, joined, equal `tokenizer.decode` of all ids.

    Example:
        decoder = IncrementalDecoder(tokenizer)
        for token_id in ids:
            print(decoder.push(token_id), end="", flush=True)
        print(decoder.finish())
    """

    # As in transformers, the tokens between two added tokens form a run, and runs are separated by a space.
    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._bytes = b""  # bytes of an incomplete character
        self._run = 0  # number of tokens in the current run
        self._after_special = False
        self._text_in_run = False
        self._earlier_runs = False

    def push(self, token_id: int) -> str:
        """Decode the next id; return the text that is now certain, in whole characters.

        Raises:
            ValueError: the id is not a token.
        """
        tokenizer = self._tokenizer
        try:
            token_id = index(token_id)  # also accepts NumPy integers
        except TypeError:
            raise ValueError(
                f"an id must be an integer, got {token_id!r:.80}; decode one list of ids at a time"
            ) from None
        if self._skip and token_id in tokenizer.special_ids:
            return ""
        if token_id in tokenizer._inline_ids:
            text = self._in_run(self._flush() + tokenizer.token_of(token_id))
            self._run, self._after_special = self._run + 1, True
            return text
        if token_id in tokenizer._added_texts:
            return self._added(tokenizer.token_of(token_id))
        tokenizer.token_of(token_id)  # raises if the id is not a token
        surface = tokenizer._surfaces[token_id]
        lead = self._after_special and self._run == 1 and not (isinstance(surface, str) and surface.startswith(" "))
        first = self._run == 0
        self._run, self._after_special = self._run + 1, False
        if isinstance(surface, int):
            self._bytes += bytes([surface])
            text = self._whole_characters()
        else:
            text = self._flush() + (surface[1:] if first and surface.startswith(" ") else surface)
        return self._in_run((" " if lead else "") + text)

    def finish(self) -> str:
        """Return the rest of the text; each byte of an incomplete character becomes U+FFFD."""
        text = self._in_run(self._flush())
        if self._run and not self._text_in_run and self._earlier_runs:
            text += " "
        self._run = 0
        return text

    def _added(self, token: str) -> str:
        """End the run and append an added token."""
        text = self._in_run(self._flush())
        gap = " " if self._text_in_run or self._earlier_runs else ""
        self._run, self._after_special, self._text_in_run, self._earlier_runs = 0, False, False, True
        return text + gap + token

    def _in_run(self, text: str) -> str:
        """Separate the first text of a run from the previous run."""
        if not text or self._text_in_run:
            return text
        self._text_in_run = True
        return f" {text}" if self._earlier_runs else text

    def _whole_characters(self) -> str:
        """Remove and return the complete characters at the start of the buffer; at most three bytes remain."""
        text = ""
        while self._bytes:
            lead = self._bytes[0]
            length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4 if lead < 0xF8 else 1
            head = self._bytes[:length]
            continues = all(0x80 <= byte < 0xC0 for byte in head[1:])
            if continues and len(head) < length:
                break
            character = head.decode("utf-8", "ignore") if continues else ""
            text += character or "\ufffd"
            self._bytes = self._bytes[length if character else 1 :]
        return text

    def _flush(self) -> str:
        """Empty the buffer: each byte of an incomplete character becomes U+FFFD, as in sentencepiece."""
        count, self._bytes = len(self._bytes), b""
        return "\ufffd" * count
