"""register_auto_classes: tell mindone.transformers, and transformers' config mapping, of the model type "share4v"."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# The pipelines stand above the models, so they are named by strings, as in the registries.
PIPELINES = {
    "image-to-text": "mindone.pipelines.image_to_text.mindone_transformers:ImageToText",
    "image-text-to-text": "mindone.pipelines.image_to_text.mindone_transformers:ImageTextToText",
}


def register_auto_classes() -> None:
    """Make mindone.transformers' Auto classes and its pipeline() know ShareGPT4V.

    Afterwards AutoConfig, AutoModelForImageTextToText, AutoModelForVision2Seq, AutoProcessor, AutoTokenizer and
    AutoImageProcessor work on checkpoints whose model type is "share4v", and `mindone.transformers.pipeline` for the
    tasks "image-to-text" and "image-text-to-text". Only the libraries' own `register` methods are used, and calling
    it again changes nothing. mindone.transformers is imported, which takes seconds.

    The libraries look names up by themselves: a directory works, and owner/name on the Hugging Face hub. So does
    "sharegpt4v-tiny", since what comes with this package is linked into Hugging Face's cache; but where the hub can be
    asked, AutoProcessor and AutoTokenizer need local_files_only=True for it. For any name that this package knows,
    `mindone.models.share4v.hub.resolve(name)` is a directory.

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

    for library in (transformers, zoo):  # mindone has a mapping of its own, and its models' Auto classes use both
        library.AutoConfig.register(Config.model_type, Config, exist_ok=True)
    for auto in (zoo.AutoModelForImageTextToText, zoo.AutoModelForVision2Seq):
        auto.register(Config, Share4VForConditionalGeneration, exist_ok=True)
    zoo.AutoProcessor.register(Config, Share4VProcessor, exist_ok=True)
    zoo.AutoImageProcessor.register(Config, slow_image_processor_class=Share4VImageProcessor, exist_ok=True)
    # mindone takes tokenizers from transformers.
    slow, fast = transformers.LlamaTokenizer, transformers.LlamaTokenizerFast
    transformers.AutoTokenizer.register(Config, slow_tokenizer_class=slow, fast_tokenizer_class=fast, exist_ok=True)
    for task, name in PIPELINES.items():
        _register_pipeline(task, name)
    link_embedded_checkpoints()


def _register_pipeline(task: str, name: str) -> None:
    """Put our class in the place of mindone's for a task; it makes mindone's for every model that is not ours."""
    from mindone.transformers.pipelines import PIPELINE_REGISTRY

    module, _, attribute = name.partition(":")
    pipeline_class = getattr(import_module(module), attribute)
    stated: dict[str, Any] = PIPELINE_REGISTRY.supported_tasks[task]
    if stated["impl"] is pipeline_class:
        return
    PIPELINE_REGISTRY.register_pipeline(
        task, pipeline_class, pt_model=stated["ms"], default=stated["default"], type=stated["type"]
    )
