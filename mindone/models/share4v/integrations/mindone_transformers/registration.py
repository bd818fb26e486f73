"""register_auto_classes: register the model type "share4v" with mindone.transformers and transformers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Named by strings, as in the registries, because the models must not import the pipelines.
PIPELINES = {
    "image-to-text": "mindone.pipelines.image_to_text.mindone_transformers:ImageToText",
    "image-text-to-text": "mindone.pipelines.image_to_text.mindone_transformers:ImageTextToText",
}


def register_auto_classes() -> None:
    """Register ShareGPT4V with mindone.transformers' Auto classes and its pipeline().

    Afterwards AutoConfig, AutoModelForImageTextToText, AutoModelForVision2Seq, AutoProcessor, AutoTokenizer and
    AutoImageProcessor support checkpoints of the model type "share4v", and so does `mindone.transformers.pipeline` for
    the tasks "image-to-text" and "image-text-to-text". Only the public `register` methods of the libraries are used.
    Calling the function again has no effect. It imports mindone.transformers, which takes seconds.

    The libraries resolve names themselves: a directory, or owner/name on the Hugging Face hub. The name
    "sharegpt4v-tiny" works too, because the checkpoints of this package are linked into Hugging Face's cache; if the
    hub is reachable, AutoProcessor and AutoTokenizer need local_files_only=True for it. For every name that this
    package knows, `mindone.models.share4v.hub.resolve(name)` returns a directory.

    Raises:
        ImportError: mindone.transformers cannot be imported.

    Example:
        >>> from mindone.models.share4v import register_auto_classes
        >>> from mindone.models.share4v.hub import resolve
        >>> register_auto_classes()
        >>> from mindone.transformers import pipeline
        >>> captioner = pipeline("image-to-text", model=resolve("sharegpt4v-tiny"))
        >>> captioner("photo.jpg", max_new_tokens=4)
        [{'generated_text': 'In the top left'}]
    """
    import transformers

    from mindone import transformers as zoo

    from .configuration import Share4VPretrainedConfig as Config
    from .hub_names import link_embedded_checkpoints
    from .image_processing import Share4VImageProcessor
    from .modeling import Share4VForConditionalGeneration
    from .processing import Share4VProcessor

    for library in (transformers, zoo):  # mindone has its own mapping, and its Auto classes use both
        library.AutoConfig.register(Config.model_type, Config, exist_ok=True)
    for auto in (zoo.AutoModelForImageTextToText, zoo.AutoModelForVision2Seq):
        auto.register(Config, Share4VForConditionalGeneration, exist_ok=True)
    zoo.AutoProcessor.register(Config, Share4VProcessor, exist_ok=True)
    zoo.AutoImageProcessor.register(Config, slow_image_processor_class=Share4VImageProcessor, exist_ok=True)
    # mindone uses the tokenizers of transformers.
    slow, fast = transformers.LlamaTokenizer, transformers.LlamaTokenizerFast
    transformers.AutoTokenizer.register(Config, slow_tokenizer_class=slow, fast_tokenizer_class=fast, exist_ok=True)
    for task, name in PIPELINES.items():
        _register_pipeline(task, name)
    link_embedded_checkpoints()


def _register_pipeline(task: str, name: str) -> None:
    """Replace mindone's pipeline class for a task by ours, which creates mindone's for all other models."""
    from mindone.transformers.pipelines import PIPELINE_REGISTRY

    module, _, attribute = name.partition(":")
    pipeline_class = getattr(import_module(module), attribute)
    stated: dict[str, Any] = PIPELINE_REGISTRY.supported_tasks[task]
    if stated["impl"] is pipeline_class:
        return
    PIPELINE_REGISTRY.register_pipeline(
        task, pipeline_class, pt_model=stated["ms"], default=stated["default"], type=stated["type"]
    )
