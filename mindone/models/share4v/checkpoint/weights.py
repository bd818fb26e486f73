"""Names of weights in every published format, translated to ours; shapes and packed blocks of a complete model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..configuration import Share4VConfig
from ..kernels.blocks import BlockPlan, Shapes
from ..language.weights import (
    HEAD,
    LANGUAGE_MODEL,
    LLAMA,
    LLAMA_OF_GGUF,
    LLAMA_OF_THE_PORT,
    LM_HEAD,
    language_plans,
    language_shapes,
)
from ..projector.weights import (
    MM_PROJECTOR,
    PROJECTOR,
    PROJECTOR_OF_GGUF,
    PROJECTOR_OF_LLAVA,
    projector_plans,
    projector_shapes,
)
from ..vision.weights import (
    CLIP,
    CLIP_OF_GGUF,
    CLIP_OF_THE_PORT,
    CLIP_TEXT_SUFFIXES,
    VISION_MODEL,
    VISION_TOWER,
    vision_plans,
    vision_shapes,
)

# Published name -> our name; {n} stands for a layer's number. None: a known tensor that is left out on purpose.
Table = Mapping[str, str | None]

COMPONENTS = (VISION_TOWER, MM_PROJECTOR, "language_model.")


def _prefixed(source: str, target: str, table: Table) -> dict[str, str | None]:
    return {source + name: None if ours is None else target + ours for name, ours in table.items()}


FORMATS: dict[str, Table] = {
    "own": {
        **_prefixed("language_model.model.", LANGUAGE_MODEL, LLAMA),
        **_prefixed("language_model.lm_head.", LM_HEAD, HEAD),
        **_prefixed("mm_projector.", MM_PROJECTOR, PROJECTOR),
        **_prefixed("vision_tower.vision_model.", VISION_MODEL, CLIP),
    },
    "original": {
        **_prefixed("model.", LANGUAGE_MODEL, LLAMA),
        **_prefixed("lm_head.", LM_HEAD, HEAD),
        **_prefixed("model.mm_projector.", MM_PROJECTOR, PROJECTOR),
        **_prefixed("model.vision_tower.vision_tower.vision_model.", VISION_MODEL, CLIP),
    },
    # What LlavaForConditionalGeneration.save_pretrained writes up to transformers 4.57, and its names in memory.
    "llava": {
        **_prefixed("language_model.model.", LANGUAGE_MODEL, LLAMA),
        **_prefixed("language_model.lm_head.", LM_HEAD, HEAD),
        **_prefixed("multi_modal_projector.", MM_PROJECTOR, PROJECTOR_OF_LLAVA),
        **_prefixed("vision_tower.vision_model.", VISION_MODEL, CLIP),
    },
    "llava (new names)": {
        **_prefixed("model.language_model.", LANGUAGE_MODEL, LLAMA),
        **_prefixed("lm_head.", LM_HEAD, HEAD),
        **_prefixed("model.multi_modal_projector.", MM_PROJECTOR, PROJECTOR_OF_LLAVA),
        **_prefixed("model.vision_tower.vision_model.", VISION_MODEL, CLIP),
    },
    "vision tower": {
        **_prefixed("vision_model.", VISION_MODEL, CLIP),
        **{f"text_model.{name}": None for name in CLIP_TEXT_SUFFIXES},
        "visual_projection.weight": None,
        "text_projection.weight": None,
        "logit_scale": None,
    },
    "gguf": {
        **_prefixed("", LANGUAGE_MODEL, LLAMA_OF_GGUF),
        **_prefixed("output.", LM_HEAD, HEAD),
        **_prefixed("mm.", MM_PROJECTOR, PROJECTOR_OF_GGUF),
        **_prefixed("v.", VISION_MODEL, CLIP_OF_GGUF),
    },
    "mindspore port": {
        **_prefixed("model.", LANGUAGE_MODEL, LLAMA_OF_THE_PORT),
        **_prefixed("vision_tower.vision_model.", VISION_MODEL, CLIP_OF_THE_PORT),
    },
    "mindspore port (class)": {
        **_prefixed("vision_model.", VISION_MODEL, CLIP_OF_THE_PORT),
        **_prefixed("vision_tower.vision_tower.vision_model.", VISION_MODEL, {**CLIP, **CLIP_OF_THE_PORT}),
        **_prefixed("model.vision_tower.vision_tower.vision_model.", VISION_MODEL, CLIP_OF_THE_PORT),
    },
}
# A name has the same meaning in all formats (a test checks that), so that one lookup serves all of them.
ALL_NAMES: Table = {name: ours for table in FORMATS.values() for name, ours in table.items()}
_NUMBER = re.compile(r"(?<![^.])(0|[1-9][0-9]*)(?![^.])")


def is_known(name: str) -> bool:
    """Return whether a tensor has this name in any published format."""
    return _NUMBER.sub("{n}", name) in ALL_NAMES


def our_name(name: str) -> str | None:
    """Translate a published name to ours; None if the tensor is left out on purpose.

    Raises:
        KeyError: no format has this name.

    Example:
        >>> from mindone.models.share4v.checkpoint.weights import our_name
        >>> our_name("model.layers.7.self_attn.q_proj.weight")
        'language_model.model.layers.7.self_attn.q_proj.weight'
        >>> our_name("multi_modal_projector.linear_2.bias")
        'mm_projector.2.bias'
    """
    numbers = _NUMBER.findall(name)
    ours = ALL_NAMES[_NUMBER.sub("{n}", name)]
    return ours if ours is None or not numbers else ours.format(n=numbers[0])


def expected_shapes(config: Share4VConfig) -> tuple[Shapes, bool]:
    """Return the shape of every weight under our names, and whether the projector's weights are included.

    A projector that another package registered has weights that only that package knows.

    Example:
        >>> from mindone.models.share4v import Share4VConfig
        >>> from mindone.models.share4v.checkpoint.weights import expected_shapes
        >>> shapes, _ = expected_shapes(Share4VConfig())
        >>> shapes["language_model.lm_head.weight"]
        (32000, 4096)
    """
    if not config.has_vision:
        return language_shapes(config.text_config), True
    projector = projector_shapes(config)
    shapes = {**vision_shapes(config.vision_config), **(projector or {}), **language_shapes(config.text_config)}
    return shapes, projector is not None


def all_plans(config: Share4VConfig, dtype: str) -> tuple[BlockPlan, ...]:
    """Return the blocks of a complete model."""
    if not config.has_vision:
        return language_plans(config, dtype)
    return language_plans(config, dtype) + vision_plans(config, dtype) + (projector_plans(config, dtype) or ())
