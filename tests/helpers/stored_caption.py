"""A caption of sharegpt4v-tiny by its components on the kernels alone, which need nothing of MindSpore but its Tensor.

`cd tests && python -m helpers.stored_caption` stores the ids of the complete model in aarch64/caption.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mindspore import Tensor

from mindone.models.share4v.checkpoint.layout import Checkpoint
from mindone.models.share4v.checkpoint.loading import weight_entries
from mindone.models.share4v.checkpoint.packed import fill
from mindone.models.share4v.configuration import IMAGE_TOKEN_INDEX
from mindone.models.share4v.kernels import library
from mindone.models.share4v.language.llama_kernels import KernelLlamaForCausalLM
from mindone.models.share4v.projector.mlp_kernels import KernelProjector
from mindone.models.share4v.vision.clip_kernels import KernelCLIPVisionTower

STORED = Path(__file__).parents[1] / "aarch64/caption.json"
TINY = Path(library.__file__).parents[1] / "assets/sharegpt4v-tiny"
DTYPES = ("float32", "float16", "int8", "int4")
MAX_NEW_TOKENS = 40


def pixels(size: int) -> np.ndarray:
    """Return a picture with a red and a blue square on grey, as float32 [1, 3, size, size]."""
    picture = np.full((3, size, size), 200, np.float32)
    quarter = size // 4
    picture[:, :quarter, :quarter] = np.array([220, 30, 30], np.float32)[:, None, None]
    picture[:, -quarter:, quarter : 2 * quarter] = np.array([30, 30, 220], np.float32)[:, None, None]
    return (picture[None] - np.float32(128)) * np.float32(1 / 64)


Components = tuple[KernelCLIPVisionTower, KernelProjector, KernelLlamaForCausalLM]


def load(checkpoint: Checkpoint, dtype: str, is_packed: bool = False) -> Components:
    """Return the components of a model; of a converted checkpoint, `is_packed`, they map its file."""
    config, entries = checkpoint.config, weight_entries(checkpoint)
    components = (
        KernelCLIPVisionTower(config, dtype),
        KernelProjector(config, dtype),
        KernelLlamaForCausalLM(config, dtype),
    )
    for component in components:
        fill(component, entries, is_packed, config.text_config)
    return components


def caption(dtype: str, prompt: list[int], count: int) -> list[int]:
    """Return `count` ids, greedily; `prompt` has IMAGE_TOKEN_INDEX in place of the picture."""
    checkpoint = Checkpoint.open(TINY)
    return answer(load(checkpoint, dtype), checkpoint.config.vision_config.image_size, prompt, count)


def answer(components: Components, image_size: int, prompt: list[int], count: int) -> list[int]:
    """Return `count` ids as `caption`."""
    tower, projector, llama = components
    features = projector(tower(Tensor(pixels(image_size)))).asnumpy()[0]
    at = prompt.index(IMAGE_TOKEN_INDEX)
    before, after = (llama.embed(Tensor(np.array([ids]))).asnumpy()[0] for ids in (prompt[:at], prompt[at + 1 :]))
    embeds = np.concatenate((before, features, after))[None]
    length = embeds.shape[1]
    cached = llama.new_cached(1, length + count)
    assert length <= cached.chunk
    totals, last = np.array([length]), np.array([length - 1])
    logits = cached.prefill(Tensor(embeds), np.arange(length)[None], totals, last).asnumpy()
    ids = [int(logits[0].argmax())]
    while len(ids) < count:
        logits = cached.decode(np.array(ids[-1:]), np.array([length + len(ids) - 1])).asnumpy()
        ids.append(int(logits[0].argmax()))
    return ids


def main() -> None:
    """Store the prompt and what the complete model answers."""
    from mindone.models.share4v import Share4V, Share4VProcessor

    processor = Share4VProcessor.from_pretrained(TINY)
    prompt = [int(id) for id in processor(images=np.zeros((96, 96, 3), np.uint8), text=None)["input_ids"][0]]
    answers = {}
    for dtype in DTYPES:
        model = Share4V.from_pretrained(TINY, dtype=dtype)
        ids = np.array([[IMAGE_TOKEN_INDEX if id == model.config.image_token_id else id for id in prompt]])
        generated = model.generate(ids, pixels(96), max_new_tokens=MAX_NEW_TOKENS, temperature=0)
        answers[dtype] = [int(id) for id in generated[0]]
    STORED.write_text(json.dumps({"prompt": ids[0].tolist(), "answers": answers}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
