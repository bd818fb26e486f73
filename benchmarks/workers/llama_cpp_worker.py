"""The llama.cpp worker of compare.py, on llama-cpp-python's bindings of the C API.

Install it compiled for this machine: `CXXFLAGS=-fno-dse pip install llama-cpp-python gguf`. The flag is needed on CPUs
with AMX: GCC 12.2 declares that `_tile_loadconfig` reads only 8 of the 64 bytes, so it removes the other stores as
dead, and the first quantized prefill ends with an illegal instruction.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray
from shapes import SHAPES, LanguageShape
from workers.gguf_model import write_model
from workers.protocol import Options, Runner, serve

BATCH = 512  # maximum number of tokens per call: llama.cpp's default of n_ubatch
CELLS = 1024  # minimum cache size of a sequence, in tokens
VARIANTS = ("split", "unified")  # KV caches of a batch
FIRST_ORDINARY_TOKEN = 259  # after <unk>, <s>, </s> and the 256 bytes


class LlamaCppRunner:
    """Runs one GGUF file in one context, which is created again when the batch size changes."""

    def __init__(self, path: Path, shape: LanguageShape, threads: int) -> None:
        self.log = _Log()
        llama_cpp.llama_backend_init()
        self.shape, self.threads = shape, threads
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}; delete it, and the next run writes it again")
        self._context: Any = None
        self._rows = self._cells = self._filled = 0
        self._is_unified = False
        self._generator = np.random.default_rng(0)

    def encode(self) -> float:
        """Not measured: llama.cpp's CLIP needs a projector file."""
        raise NotImplementedError("llama.cpp's image encoder is not measured")

    def prefill(self, tokens: int) -> float:
        """Keeps the cache, for `decode` after the same number of tokens."""
        self._open(1, tokens)
        return self._prefill(tokens)

    def decode(self, tokens: int, context: int) -> float:
        """`batch_decode` with one sequence."""
        return self.batch_decode(1, tokens, context)

    def batch_decode(self, batch: int, tokens: int, context: int) -> float:
        """Every sequence continues a copy of the cache of one prompt, in its own stream or in one for all (`use`)."""
        self._open(batch, context + tokens)
        memory = llama_cpp.llama_get_memory(self._context)
        if self._filled != context:
            self._prefill(context)
            for row in range(1, batch):
                llama_cpp.llama_memory_seq_cp(memory, 0, row, -1, -1)
            self._step(self._random_tokens(batch), context)  # llama.cpp copies the caches only at the next step
        for row in range(batch):
            llama_cpp.llama_memory_seq_rm(memory, row, context, -1)
        following = self._random_tokens(batch)
        start = time.perf_counter()
        for position in range(context, context + tokens):
            following = self._step(following, position)
        return (time.perf_counter() - start) / tokens

    def use(self, variant: str) -> None:
        """Choose between a cache for each sequence and one for all."""
        if (variant == "unified") != self._is_unified:
            self._is_unified = variant == "unified"
            self._rows = 0  # so that the next call makes another context

    def _open(self, rows: int, cells: int) -> None:
        if self._context and self._rows == rows and self._cells >= cells:
            return
        if self._context:
            llama_cpp.llama_free(self._context)
        self._rows, self._cells, self._filled = rows, max(CELLS, -(-cells // 256) * 256), 0
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = rows * self._cells
        parameters.n_seq_max = rows
        parameters.kv_unified = self._is_unified
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self.threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot create a context for {rows} sequences of {self._cells} tokens")

    def _prefill(self, tokens: int) -> float:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        prompt = self._random_tokens(tokens).astype(np.int32)
        start = time.perf_counter()
        for first in range(0, tokens, BATCH):
            part = prompt[first : first + BATCH]
            pointer = part.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            # `get_one` requests only the logits of the last token.
            self._run(llama_cpp.llama_batch_get_one(pointer, len(part)))
        self._logits(-1).argmax()
        elapsed = time.perf_counter() - start
        self._filled = tokens
        return elapsed

    def _step(self, tokens: NDArray[np.int64], position: int) -> NDArray[np.int64]:
        """Decode one token of every sequence and return the most probable next tokens."""
        rows = len(tokens)
        batch = llama_cpp.llama_batch_init(rows, 0, 1)
        batch.n_tokens = rows
        for row in range(rows):
            batch.token[row], batch.pos[row], batch.logits[row] = int(tokens[row]), position, True
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, row
        self._run(batch)
        chosen = np.array([self._logits(row).argmax() for row in range(rows)])
        llama_cpp.llama_batch_free(batch)
        return chosen

    def _run(self, batch: Any) -> None:
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with status {status}")
        llama_cpp.llama_synchronize(self._context)

    def _logits(self, index: int) -> NDArray[np.float32]:
        """Return the logits [vocab_size] of one token of the last batch, without copying."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (self.shape.vocab_size,))

    def _random_tokens(self, count: int) -> NDArray[np.int64]:
        return self._generator.integers(FIRST_ORDINARY_TOKEN, self.shape.vocab_size, count)


class _Log:
    """Stores llama.cpp's log messages, which tell where it placed the weights."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.callback = llama_cpp.llama_log_callback(self._add)  # must live as long as llama.cpp does
        llama_cpp.llama_log_set(self.callback, ctypes.c_void_p(0))

    def _add(self, level: int, text: bytes, user_data: object) -> None:
        self.lines.append(text.decode(errors="replace").strip())

    def about(self, words: str) -> list[str]:
        return [line.split(":", 1)[-1].strip() for line in self.lines if words in line]


def build(options: Options) -> tuple[Runner, dict[str, Any]]:
    """Return a runner for one type, and facts about it; its file is written on first use and stays in the directory."""
    shape = SHAPES[options.shape].language
    path = options.directory / f"llama-{options.shape}-{options.dtype}.gguf"
    if not path.exists():
        write_model(path, shape, options.dtype)
    start = time.perf_counter()
    runner = LlamaCppRunner(path, shape, options.threads)
    return runner, {
        "load_seconds": time.perf_counter() - start,
        "system_info": llama_cpp.llama_print_system_info().decode().strip(),
        "variants": VARIANTS,
        "weight_buffers": runner.log.about("model buffer size"),
    }


if __name__ == "__main__":
    serve(build, packages=("llama-cpp-python", "numpy"))
