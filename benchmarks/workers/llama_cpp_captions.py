"""Caption an image with llama.cpp, and store features, logits and ids; run by llama_cpp_captions.py.

python llama_cpp_captions.py features MMPROJ IMAGE WIDTH OUT
python llama_cpp_captions.py language MODEL PROMPT FEATURES NEW_TOKENS OUT
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

PLACEHOLDER = "<image>"


class Sequence:
    """One sequence in a context of llama.cpp; collects the logits of every position."""

    def __init__(self, path: str) -> None:
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.use_extra_bufts = False  # on some CPUs repacked matrices of this size crash
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = 256
        settings.n_threads = settings.n_threads_batch = 2
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.width = llama_cpp.llama_model_n_embd(self.model)
        self.logits: list[np.ndarray] = []

    def tokens(self, text: str, is_first: bool) -> list[int]:
        """Tokenize one part of the prompt, as llama.cpp's own programs do: only the first gets BOS."""
        data = text.encode()
        ids = (llama_cpp.llama_token * 256)()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), ids, 256, is_first, True)
        return list(ids[:count])

    def add(self, tokens: list[int] | None = None, features: np.ndarray | None = None) -> None:
        """Append tokens or image features, float32 [n, width]."""
        count = len(tokens) if tokens is not None else len(features)
        batch = llama_cpp.llama_batch_init(count, 0 if tokens is not None else self.width, 1)
        batch.n_tokens = count
        for index in range(count):
            if tokens is not None:
                batch.token[index] = tokens[index]
            batch.pos[index], batch.n_seq_id[index], batch.logits[index] = len(self.logits) + index, 1, 1
            batch.seq_id[index][0] = 0
        if features is not None:
            ctypes.memmove(batch.embd, np.ascontiguousarray(features, np.float32).ctypes.data, features.size * 4)
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        for index in range(count):
            found = llama_cpp.llama_get_logits_ith(self.context, index)
            self.logits.append(np.ctypeslib.as_array(found, (self.size,)).copy())


def image_features(mmproj: str, image: str, width: int) -> np.ndarray:
    """Return the projected features of an image file, float32 [patches, width]."""
    from llama_cpp import llava_cpp

    data = Path(image).read_bytes()
    tower = llava_cpp.clip_model_load(mmproj.encode(), 0)
    buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
    found: Any = llava_cpp.llava_image_embed_make_with_bytes(tower, 2, buffer, len(data))
    return np.ctypeslib.as_array(found.contents.embed, (found.contents.n_image_pos, width)).copy()


def caption(model: str, prompt: str, features: np.ndarray, max_new_tokens: int) -> dict[str, Any]:
    """Return the ids of the prompt, the greedy ids (with EOS, if it comes), and the logits that led to them."""
    sequence = Sequence(model)
    before, after = (sequence.tokens(part, index == 0) for index, part in enumerate(prompt.split(PLACEHOLDER)))
    sequence.add(before)
    sequence.add(features=features)
    sequence.add(after)
    generated: list[int] = []
    for _ in range(max_new_tokens):
        best = int(sequence.logits[-1].argmax())
        generated.append(best)
        if best == llama_cpp.llama_vocab_eos(sequence.vocabulary):
            break
        sequence.add([best])
    logits = np.array(sequence.logits[len(before) + len(features) + len(after) - 1 :])
    return {"before": before, "after": after, "logits": logits, "generated": generated}


def main() -> None:
    task, *arguments, out = sys.argv[1:]
    if task == "features":
        mmproj, image, width = arguments
        np.savez(out, features=image_features(mmproj, image, int(width)))
    else:
        model, prompt, features, count = arguments
        with np.load(features) as found:
            np.savez(out, **caption(model, prompt, found["features"], int(count)))


if __name__ == "__main__":
    main()
