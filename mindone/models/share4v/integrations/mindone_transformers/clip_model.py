"""CLIP with both towers: mindone.transformers' CLIPModel with the weights of a directory in transformers' format.

Importing this module imports mindone.transformers, which takes seconds.
"""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
from mindone.transformers import CLIPModel
from mindspore import nn
from transformers import CLIPConfig

from ...checkpoint.errors import CheckpointError, listing
from ...checkpoint.formats import find_weights, stored_tensors
from ...checkpoint.loading import fill_parameters
from .vision_tower import ACTIVATIONS, LEAVES

_IGNORED = ("position_ids",)  # buffers that older files have


def load_clip(directory: str | Path) -> CLIPModel:
    """Load a CLIP model in float32; its parameters are named as in checkpoints.

    Args:
        directory: has config.json of a CLIPModel, and its weights.

    Raises:
        ValueError: config.json is not that of a CLIPModel.
        CheckpointError: a weight is missing, unexpected or of the wrong shape.
        FileNotFoundError: there is no config.json, or there are no weights.

    Example:
        >>> from mindone.models.share4v.integrations.mindone_transformers.clip_model import load_clip
        >>> model = load_clip("clip-vit-large-patch14")  # doctest: +SKIP
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} has no config.json: give the directory of a CLIP model, both towers")
    config = CLIPConfig.from_pretrained(directory, local_files_only=True)
    entries = {entry.name: entry for entry in stored_tensors(find_weights(directory))}
    entries = {name: entry for name, entry in entries.items() if not name.endswith(_IGNORED)}
    if "text_projection.weight" not in entries:
        raise CheckpointError(f"{directory} has no text tower: give the directory of a CLIPModel with both towers")
    for part in (config.text_config, config.vision_config):
        part.hidden_act = ACTIVATIONS.get(part.hidden_act, part.hidden_act)
    model = CLIPModel(config)
    if ms.get_context("device_target") == "CPU":  # mint.nn.Conv2d is not supported there
        vision = config.vision_config
        model.vision_model.embeddings.patch_embedding = nn.Conv2d(
            vision.num_channels, vision.hidden_size, vision.patch_size, vision.patch_size, pad_mode="valid"
        )
    parameters = {}
    for path, parameter in model.parameters_and_names():
        parent, _, leaf = path.rpartition(".")
        parameters[f"{parent}.{LEAVES.get(leaf, leaf)}".removeprefix(".")] = parameter
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    wrong = [name for name, shape in shapes.items() if name not in entries or entries[name].shape != shape]
    wrong += [name for name in entries if name not in shapes]
    if wrong:
        raise CheckpointError(
            f"the weights in {directory} do not fit its config: {len(wrong)} are missing, unexpected or of another "
            f"shape: {listing(wrong)}"
        )
    fill_parameters(parameters, entries, "float32")
    model.set_train(False)
    return model
