"""The component registries: names that stand for "module:attribute" and are imported when they are used."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from .suggestions import unknown

ENTRY_POINT_GROUP = "mindone.share4v"


class Registry:
    """Names of components of one kind.

    Another package adds a component through an entry point in the group `mindone.share4v`, named `<kind>.<name>`; it
    is not imported until the name is used:

        [project.entry-points."mindone.share4v"]
        "vision_tower.siglip" = "their_package.siglip:SiglipVisionTower"

    Example:
        >>> from mindone.models.share4v.registry import Registry
        >>> towers = Registry("vision_tower")
        >>> towers.register("counter", "collections:Counter")
        >>> towers.resolve("counter")
        <class 'collections.Counter'>
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        self.extras: dict[str, str] = {}

    def register(self, name: str, target: str, extra: str | None = None) -> None:
        """Register `target`, a string "module:attribute", under `name`; nothing is imported yet.

        Args:
            name: the name that callers use.
            target: where the component is defined.
            extra: a package that the component needs, and that this project's extra of the same name installs.

        Raises:
            ValueError: `target` has another format, or `name` is registered for another target.
        """
        module, _, attribute = target.partition(":")
        if not module or not attribute:
            raise ValueError(f"a {self.kind} is registered as 'module:attribute', got {target!r}")
        current = self._targets.setdefault(name, target)
        if current != target:
            raise ValueError(f"{self.kind} {name!r} is already registered as {current!r}, cannot become {target!r}")
        if extra is not None:
            self.extras[name] = extra

    def names(self) -> list[str]:
        """Return every known name, including those of entry points."""
        return sorted({*self._targets, *self._entry_points()})

    def resolve(self, name: str) -> Any:
        """Import and return the component `name`.

        Raises:
            ValueError: the name is unknown; the message lists the known names and the closest match.
            ImportError: the component cannot be imported, or needs a package that is not installed.
        """
        extra = self.extras.get(name)
        if extra is not None and find_spec(extra) is None:
            raise ImportError(
                f"{self.kind} {name!r} needs {extra}, which is not installed: pip install 'mindone-share4v[{extra}]', "
                "preferably into a separate environment"
            )
        target = self._targets.get(name)
        if target is None:
            entry_point = self._entry_points().get(name)
            if entry_point is None:
                raise ValueError(unknown(self.kind, name, self.names()))
            target = entry_point.value
        module, _, attribute = target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"{self.kind} {name!r} stands for {target!r}, which cannot be imported: {error}"
            ) from error

    def _entry_points(self) -> dict[str, EntryPoint]:
        prefix = f"{self.kind}."
        points = entry_points(group=ENTRY_POINT_GROUP)
        return {point.name[len(prefix) :]: point for point in points if point.name.startswith(prefix)}


VISION_TOWERS = Registry("vision_tower")
VISION_TOWERS.register("clip", "mindone.models.share4v.vision.clip:CLIPVisionTower")
VISION_TOWERS.register("packed-clip", "mindone.models.share4v.vision.clip_kernels:KernelCLIPVisionTower")
VISION_TOWERS.register(
    "mindone", "mindone.models.share4v.integrations.mindone_transformers.vision_tower:MindoneCLIPVisionTower"
)

PROJECTORS = Registry("projector")
PROJECTORS.register("linear", "mindone.models.share4v.projector.mlp:LinearProjector")
PROJECTORS.register("mlp", "mindone.models.share4v.projector.mlp:MLPProjector")
PROJECTORS.register("identity", "mindone.models.share4v.projector.mlp:IdentityProjector")
PROJECTORS.register("packed", "mindone.models.share4v.projector.mlp_kernels:KernelProjector")

# Other tokenizers than sentencepiece's, by tokenizer.ggml.model of GGUF files.
TOKENIZERS = Registry("tokenizer")
TOKENIZERS.register("gpt2", "mindone.models.share4v.processing.byte_level:ByteLevelTokenizer")

LANGUAGE_MODELS = Registry("language_model")
LANGUAGE_MODELS.register("llama", "mindone.models.share4v.language.llama:LlamaForCausalLM")
LANGUAGE_MODELS.register("packed-llama", "mindone.models.share4v.language.llama_kernels:KernelLlamaForCausalLM")
LANGUAGE_MODELS.register(
    "mindnlp", "mindone.models.share4v.integrations.mindnlp.model:MindNLPLlamaForCausalLM", "mindnlp"
)
