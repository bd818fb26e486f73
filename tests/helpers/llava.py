"""transformers' LlavaForConditionalGeneration in several small shapes, asked what the tests want to know."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

from mindone.models.share4v.configuration import IMAGE_TOKEN_INDEX as IMAGE

T = TypeVar("T")
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Shape:
    """One small model: what differs from `VISION` and `TEXT`, and which features of the image are taken."""

    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    select_layer: int = -2
    strategy: str = "default"
    seed: int = 0
    language: type[LlamaConfig | MistralConfig] = LlamaConfig


SHAPES = {
    "usual": Shape({"image_size": 28, "patch_size": 14}),
    "odd-grouped-gelu": Shape(
        {"image_size": 33, "patch_size": 8, "hidden_act": "gelu"},
        {"num_key_value_heads": 2, "rope_theta": 500000.0, "rms_norm_eps": 1e-5},
        select_layer=-1,
        strategy="full",
        seed=1,
    ),
    "head-size-tied-biased": Shape(
        {"image_size": 17, "patch_size": 5, "num_attention_heads": 2, "layer_norm_eps": 1e-3},
        {
            "hidden_size": 40,
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
            "head_dim": 18,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_theta": 100.0,
        },
        select_layer=1,
        seed=2,
    ),
    "linear-rope": Shape(
        {"image_size": 30, "patch_size": 10, "num_hidden_layers": 2},
        {
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "max_position_embeddings": 40,
            "num_hidden_layers": 1,
        },
        select_layer=-3,
        seed=3,
    ),
    "dynamic-rope": Shape(
        {"image_size": 28, "patch_size": 14, "num_hidden_layers": 2},
        {
            "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
            "max_position_embeddings": 32,
            "num_key_value_heads": 2,
            "num_hidden_layers": 1,
        },
        select_layer=2,
        strategy="full",
        seed=4,
    ),
}
# One layer: for tests in which only the model's behaviour counts, since each graph is compiled anew.
SMALL = Shape(
    {"image_size": 28, "patch_size": 14, "num_hidden_layers": 1},
    {"num_hidden_layers": 1, "num_key_value_heads": 2},
    select_layer=-1,
    seed=5,
)


class Llava(LlavaForConditionalGeneration):
    """For beams transformers repeats every image in place (i1 i1 i2 i2), so that a beam would see one image twice."""

    @staticmethod
    def _expand_inputs_for_generation(expand_size: int = 1, **inputs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        images = inputs.pop("pixel_values", None)
        ids, others = LlavaForConditionalGeneration._expand_inputs_for_generation(expand_size=expand_size, **inputs)
        return ids, others if images is None else others | {"pixel_values": images.repeat(expand_size, 1, 1, 1)}


class Reference:
    """A LLaVA in PyTorch. Prompts are lists of ids in which `IMAGE` stands for one image.

    No weight matrix is as small as at the start of training: logits spread, and greedy ids do not settle on one token.
    """

    def __init__(self, shape: Shape) -> None:
        vision = CLIPVisionConfig(**{**VISION, **shape.vision})
        text = shape.language(**{**TEXT, **shape.text})
        self.shape = shape
        self._answers: dict[bytes, Any] = {}
        patches = (vision.image_size // vision.patch_size) ** 2
        self.num_image_tokens = patches + (shape.strategy == "full")
        self.image_token = text.vocab_size - 1
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=self.image_token,
            vision_feature_layer=shape.select_layer,
            vision_feature_select_strategy=shape.strategy,
            image_seq_length=self.num_image_tokens,
            tie_word_embeddings=text.tie_word_embeddings,
            attn_implementation="eager",
        )
        torch.manual_seed(shape.seed)
        self.model = Llava(config).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                _randomise(name, parameter, text.tie_word_embeddings)
            # transformers penalises the repetition of its own placeholder, which ours has no id for.
            self.model.lm_head.weight[self.image_token] = 0
        self.reseed(shape.seed)

    def reseed(self, seed: int) -> None:
        """Begin `text` and `images` anew."""
        self.rng = np.random.default_rng(seed)

    @property
    def vocab_size(self) -> int:
        return self.model.config.text_config.vocab_size

    def text(self, length: int) -> list[int]:
        """Random ids, none of them special."""
        return self.rng.integers(3, self.image_token, length).tolist()

    def images(self, count: int) -> np.ndarray:
        """Random pixel_values [N, 3, S, S]."""
        size = self.model.config.vision_config.image_size
        return self.rng.standard_normal((count, 3, size, size)).astype(np.float32)

    def expand(
        self, prompt: Sequence[int], values: Sequence[int] | None = None, at_patches: int | None = None
    ) -> list[int]:
        """The prompt as transformers wants it, its own placeholder once for each patch; or `values` that go with it."""
        own, filling = (prompt, self.image_token) if values is None else (values, at_patches)
        pairs = zip(prompt, own, strict=True)
        parts = [[filling] * self.num_image_tokens if item == IMAGE else [value] for item, value in pairs]
        return [item for part in parts for item in part]

    def vision_features(self, pixel_values: np.ndarray) -> np.ndarray:
        """The chosen hidden state of the vision tower, [N, P, D]."""
        with torch.no_grad():
            states = self.model.model.vision_tower(torch.tensor(pixel_values), output_hidden_states=True).hidden_states
        chosen = states[self.shape.select_layer]
        return (chosen if self.shape.strategy == "full" else chosen[:, 1:]).numpy()

    def projected(self, pixel_values: np.ndarray) -> np.ndarray:
        """Image features in the language model's space, [N, P, H]."""
        with torch.no_grad():
            return torch.stack(tuple(self.model.get_image_features(torch.tensor(pixel_values)))).numpy()

    def logits(self, prompt: Sequence[int], pixel_values: np.ndarray) -> np.ndarray:
        """Logits [T, V] of one prompt."""

        def compute() -> np.ndarray:
            self._forget()
            with torch.no_grad():
                return self.model(**self._inputs([prompt], pixel_values)).logits[0].float().numpy()

        return self._once(compute, "logits", list(prompt), pixel_values)

    def generate(self, prompts: Sequence[Sequence[int]], pixel_values: np.ndarray, **settings: Any) -> list[list[int]]:
        """New ids of each prompt, up to the end-of-text token; beams only for one prompt at a time."""
        ends = settings.setdefault("eos_token_id", self.model.config.text_config.eos_token_id)

        def compute() -> list[list[int]]:
            self._forget()
            inputs = self._inputs(prompts, pixel_values)
            with torch.no_grad():
                output = self.model.generate(**inputs, do_sample=False, pad_token_id=0, **settings)
            return [until(row, ends) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]

        return self._once(compute, "generate", [list(prompt) for prompt in prompts], pixel_values, settings)

    def loss(self, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], pixel_values: np.ndarray) -> Any:
        """The loss of texts padded on the right, still attached to the weights; labels as long as the prompts."""
        self._forget()
        inputs = self._inputs(prompts, pixel_values, side="right")
        wide = [self.expand(prompt, row, -100) for prompt, row in zip(prompts, labels, strict=True)]
        targets, mask = padded(wide, side="right")
        return self.model(**inputs, labels=torch.tensor(np.where(mask == 1, targets, -100))).loss

    @contextmanager
    def rounded(self, dtype: torch.dtype) -> Iterator[None]:
        """Round every weight to another type for a while; the arithmetic stays float32."""
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict({name: tensor.to(dtype).float() for name, tensor in before.items()})
        yield
        self.model.load_state_dict(before)

    def _once(self, compute: Callable[[], T], name: str, question: Any, pixel_values: np.ndarray, *more: Any) -> T:
        """Return what `compute` returns. Tests of several backends ask the same: it is computed once for given weights.

        The answer belongs to all that it depends on: name, dtype and values of every weight, and the arguments.
        """
        state = blake2b(repr((name, question, more, pixel_values.shape, str(pixel_values.dtype))).encode())
        state.update(pixel_values.tobytes())
        for key, tensor in self.model.state_dict().items():
            state.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
        asked = state.digest()
        if asked not in self._answers:
            self._answers[asked] = compute()
        return copy.deepcopy(self._answers[asked])

    def _inputs(
        self, prompts: Sequence[Sequence[int]], pixel_values: np.ndarray, side: str = "left"
    ) -> dict[str, torch.Tensor]:
        ids, mask = padded([self.expand(prompt) for prompt in prompts], side)
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return inputs | ({"pixel_values": torch.tensor(pixel_values)} if len(pixel_values) else {})

    def _forget(self) -> None:
        """Dynamic rotary scaling in transformers remembers the longest text; each question here is a first one."""
        rotary = self.model.model.language_model.rotary_emb
        rotary.max_seq_len_cached = rotary.original_max_seq_len
        rotary.register_buffer("inv_freq", rotary.original_inv_freq, persistent=False)


def _randomise(name: str, parameter: torch.Tensor, is_tied: bool) -> None:
    if parameter.dim() == 1 and name.endswith("weight"):  # a norm's
        parameter.uniform_(0.5, 1.5)
    elif parameter.dim() == 1:
        parameter.normal_(0, 0.2)
    elif "embed" in name and "patch" not in name:
        parameter.normal_(0, 0.2 if is_tied else 1)  # a text of tied, large embeddings repeats its last token
    else:
        parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)


def padded(prompts: Sequence[Sequence[int]], side: str) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask [B, L] of unequal prompts."""
    width = max(len(prompt) for prompt in prompts)
    ids, mask = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    return ids, mask


def until(ids: list[int], ends: int | Sequence[int]) -> list[int]:
    """The ids before the first of `ends`."""
    ends = {ends} if isinstance(ends, int) else set(ends)
    return ids[: next((place for place, item in enumerate(ids) if item in ends), len(ids))]
