"""Training against PyTorch: loss, gradients, Adam's steps; which weights and which tokens are learnt."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
import torch
from helpers.llava import IMAGE, padded
from helpers.training import Pair, batch_of, loss_of, our_name, texts_with
from mindspore import Tensor
from transformers import get_cosine_schedule_with_warmup

from mindone.models.share4v import IGNORE_INDEX, Share4V, Share4VProcessor
from mindone.models.share4v.processing.chat_templates import get_template
from mindone.models.share4v.processing.image_processor import ImageProcessor
from mindone.models.share4v.processing.messages import read_messages
from mindone.models.share4v.processing.tokenizer import Tokenizer
from mindone.models.share4v.training.initialization import check_trainable, initialize
from mindone.models.share4v.training.labels import collate, tokenize_conversation
from mindone.models.share4v.training.loss import make_batch, mean_cross_entropy
from mindone.models.share4v.training.trainer import (
    Schedule,
    Stage,
    train,
    train_all,
    train_language_and_projector,
    train_upper_vision,
    trained_parameters,
)

LENGTH = 32


@pytest.mark.parametrize("images, extra", [((1, 1), 0), ((2, 0, 1), 0), ((0, 1), 7), ((0, 0), 0)], ids=str)
def test_the_loss_equals_transformers(pair: Pair, images: tuple[int, ...], extra: int) -> None:
    reference, model = pair
    texts, pixels = texts_with(reference, *images), reference.images(sum(images))
    longest = max(len(reference.expand(prompt)) for prompt in texts[0])
    batch = batch_of(model, texts, pixels, longest + extra)
    assert batch.index.shape == (len(images), longest + extra)
    ours = loss_of(model, batch)(batch.pixel_values, batch.input_ids, batch.index, batch.targets)
    with torch.no_grad():
        wanted = reference.loss(*texts, pixels).item()
    np.testing.assert_allclose(ours.asnumpy(), wanted, rtol=1e-5)


def test_texts_of_all_lengths_share_one_compiled_step(small_cells: Pair) -> None:
    """MindSpore compiles a training step for every shape."""
    reference, model = small_cells
    batches = []
    for images in ((1, 0), (0, 1), (0, 0)):  # the ids are padded to the longest text of each batch
        texts, pixels = texts_with(reference, *images), reference.images(sum(images))
        batches.append(batch_of(model, texts, pixels, LENGTH))
    assert batches[0].input_ids.shape == (2, LENGTH)
    fields = "pixel_values", "input_ids", "index", "targets"
    assert len({tuple(getattr(batch, name).shape for name in fields) for batch in batches}) == 1


def test_gradients_equal_torch(pair: Pair) -> None:
    reference, model = pair
    texts, pixels = texts_with(reference, 1, 0, 2), reference.images(3)
    batch = batch_of(model, texts, pixels)
    weights = ms.ParameterTuple(trained_parameters(model, train_all))
    gradient = ms.value_and_grad(loss_of(model, batch), None, weights)
    _, ours = gradient(batch.pixel_values, batch.input_ids, batch.index, batch.targets)
    reference.loss(*texts, pixels).backward()
    theirs = {our_name(name): value.grad for name, value in reference.model.named_parameters()}
    assert len(weights) > 40
    for parameter, value in zip(weights, ours, strict=True):
        wanted = theirs.pop(parameter.name).numpy()
        np.testing.assert_allclose(value.asnumpy(), wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max() + 1e-6)
    # What no loss reaches, and ours leaves out, has no gradient in torch either.
    assert theirs and all(value is None or not value.any() for value in theirs.values())


def test_mean_cross_entropy_equals_torch() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((9, 7)).astype(np.float32) * 20, rng.integers(0, 7, 9)
    targets[[0, 4, 8]] = IGNORE_INDEX
    ours = mean_cross_entropy(Tensor(logits), Tensor(targets.astype(np.int32)))
    wanted = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(targets))
    np.testing.assert_allclose(ours.asnumpy(), wanted.item(), rtol=1e-6)


def test_steps_of_training_equal_torchs_adam(pair: Pair) -> None:
    reference, model = pair
    texts, pixels = texts_with(reference, 1, 1), reference.images(2)
    batch = batch_of(model, texts, pixels, LENGTH)
    schedule = Schedule(peak=2e-3, steps=4, warmup=2)
    stage = Stage(schedule, LENGTH, train_language_and_projector, max_grad_norm=0.5, beta2=0.95)
    losses = list(train(model, stage, itertools.repeat(batch)))

    chosen = {our_name(name): value for name, value in reference.model.named_parameters()}
    chosen = {name: value for name, value in chosen.items() if train_language_and_projector(name)}
    optimizer = torch.optim.Adam(chosen.values(), betas=(0.9, 0.95), eps=1e-8)
    wanted = []
    for rate in schedule.rates():
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = reference.loss(*texts, pixels)
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(chosen.values(), 0.5) > 0.5  # so that clipping is compared
        optimizer.step()
        wanted.append(loss.item())
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    assert losses[-1] < losses[0] - 0.1
    trained = {name: value.asnumpy() for name, value in model.parameters_and_names()}
    for name, value in chosen.items():
        # Adam moves an element by the rate whatever its gradient; where that is all rounding, it moves by chance.
        error = np.abs(trained[name] - value.detach().numpy())
        assert (error < 1e-2 * sum(schedule.rates())).mean() > 0.99, name
    for name, value in reference.model.named_parameters():
        if our_name(name) not in chosen:
            np.testing.assert_array_equal(trained[our_name(name)], value.detach().numpy(), err_msg=name)


@pytest.mark.parametrize("pair", ["small"], indirect=True)
def test_a_model_that_is_being_trained_answers_with_its_present_weights(pair: Pair) -> None:
    reference, model = pair
    texts, pixels = texts_with(reference, 1, 1), reference.images(2)
    batch = batch_of(model, texts, pixels, LENGTH)
    prompt, cache = [1, *reference.text(70), IMAGE, 5], model.new_cache(1, 128)

    def answer() -> list[int]:
        return model.generate(np.array([prompt]), pixels[:1], past_key_values=cache, max_new_tokens=12)[0]

    before = answer()
    steps = train(model, Stage(Schedule(0.02, 2, 0), LENGTH, train_all), itertools.repeat(batch))
    next(steps)
    after = answer()
    # The uncached pass has nothing that it could remember of the weights before.
    logits = model(np.array([prompt + after]), pixels[:1]).logits.asnumpy()[0]
    first = len(reference.expand(prompt)) - 1
    assert logits[first : first + len(after)].argmax(-1).tolist() == after != before


def trained_names(model: Share4V, trains: Callable[[str], bool]) -> set[str]:
    return {parameter.name for parameter in trained_parameters(model, trains)}


def test_stages_train_what_the_recipe_says(usual: Pair) -> None:
    model = usual[1]  # three layers, of which the last is behind the selected hidden state
    everything = trained_names(model, train_all)
    language = {name for name, _ in model.parameters_and_names() if name.startswith(("language_model", "mm_projector"))}
    tower = "vision_tower.vision_model."
    second = {name for name in everything if name.startswith(f"{tower}encoder.layers.1.")}
    assert trained_names(model, train_language_and_projector) == language
    assert len(second) == 16 and trained_names(model, train_upper_vision(1)) == language | second
    unused = {name for name, _ in model.parameters_and_names()} - everything
    assert unused and all(name.startswith((f"{tower}encoder.layers.2.", f"{tower}post_layernorm.")) for name in unused)


@pytest.mark.parametrize("steps, warmup", [(100, 3), (50, 0), (7, 7)])
def test_the_schedule_has_the_shape_of_transformers(steps: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    wanted = []
    for _ in range(steps + 1):
        wanted.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    rates = Schedule(3.0, steps, warmup).rates()
    # transformers' first step has rate 0 and changes nothing; ours begins with the second's.
    np.testing.assert_allclose(rates, wanted[1 : warmup + 1] + wanted[warmup:steps], atol=1e-12)
    assert len(rates) == steps and max(rates) == 3.0


# Labels


MESSAGES = [
    {"role": "user", "content": "<image>\nthe red dog"},
    {"role": "assistant", "content": "two blue squares"},
    {"role": "user", "content": "END of it"},
    {"role": "assistant", "content": "a red circle"},
]


@pytest.mark.parametrize("template", ["vicuna_v1", "share4v_v1", "share4v_v0", "share4v_llama_2"])
def test_only_the_answers_and_what_ends_them_are_learnt(template: str, tokenizer: Tokenizer) -> None:
    processor = Share4VProcessor(ImageProcessor(28, 28), tokenizer)
    text = tokenize_conversation(processor, MESSAGES, template)
    whole = get_template(template).render(read_messages(MESSAGES), add_generation_prompt=False)
    assert text.input_ids.tolist() == processor.encode_prompt(whole)
    learnt = text.labels != IGNORE_INDEX
    np.testing.assert_array_equal(text.labels[learnt], text.input_ids[learnt])
    edges = np.flatnonzero(np.diff(np.concatenate(([False], learnt, [False]))))
    runs = [text.labels[first:end].tolist() for first, end in zip(edges[::2], edges[1::2], strict=True)]
    end = "###" if template == "share4v_v0" else "</s>"
    decoded = [tokenizer.decode(run, skip_special_tokens=False).replace(" ", "") for run in runs]
    assert decoded == [answer.replace(" ", "") + end for answer in ("two blue squares", "a red circle")]


def test_a_conversation_without_an_answer_is_refused(tokenizer: Tokenizer) -> None:
    processor = Share4VProcessor(ImageProcessor(28, 28), tokenizer)
    with pytest.raises(ValueError, match="no message with role 'assistant'"):
        tokenize_conversation(processor, MESSAGES[:1])


def test_texts_are_padded_on_the_right_and_padding_is_not_learnt(tokenizer: Tokenizer) -> None:
    processor = Share4VProcessor(ImageProcessor(28, 28), tokenizer)
    texts = [tokenize_conversation(processor, MESSAGES[:count]) for count in (2, 4)]
    width = len(texts[1].input_ids) + 3
    ids, mask, labels = collate(texts, width)
    assert ids.shape == mask.shape == labels.shape == (2, width)
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        assert mask[row].tolist() == [1] * length + [0] * (width - length)
        assert ids[row, :length].tolist() == text.input_ids.tolist()
        assert labels[row].tolist() == text.labels.tolist() + [IGNORE_INDEX] * (width - length)
    with pytest.raises(ValueError, match=f"has {width - 3} ids, more than the width of {width - 4}"):
        collate(texts, width - 4)


# What is refused


def test_batches_that_do_not_fit_are_refused(small: Pair) -> None:
    reference, model = small
    texts, pixels = texts_with(reference, 1), reference.images(1)
    prompts, labels = texts

    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(ValueError, match=message):
            batch_of(model, *arguments)

    refused("a sequence has 12 tokens with its images, more than the length of 11", texts, pixels, 11)
    refused("the prompts name 1 images .* and 0 images are given", texts, pixels[:0])
    refused("input_ids has id 97; the vocabulary goes from 0 to 96", ([[*prompts[0][:-1], 97]], labels), pixels)
    refused("labels contains id 97; valid ids are 0 to 96", (prompts, [[*labels[0][:-1], 97]]), pixels)
    refused("nothing to train on", (prompts, [[IGNORE_INDEX] * len(labels[0])]), pixels)
    refused(r"pixel_values must be \[N, 3, 28, 28\], got \[1, 3, 30, 30\]", texts, np.zeros((1, 3, 30, 30)))
    ids, mask = padded(prompts, "right")
    with pytest.raises(ValueError, match=re.escape(f"attention_mask has shape (1, 3), input_ids has {ids.shape};")):
        make_batch(model, pixels, ids, mask[:, :3], ids, LENGTH)


def test_a_stage_that_cannot_be_run_is_refused(small: Pair) -> None:
    _, model = small
    stage = Stage(Schedule(1e-3, 2, 0), LENGTH, lambda name: False)
    with pytest.raises(ValueError, match="the stage trains no parameter"):
        next(train(model, stage, []))
    with pytest.raises(ValueError, match="there are only 0 batches for the 2 steps of the schedule"):
        next(train(model, Stage(Schedule(1e-3, 2, 0), LENGTH, train_all), []))


def test_a_model_on_the_kernels_says_how_to_load_it_for_training(pair_of: Callable[..., Pair]) -> None:
    _, model = pair_of("small", "kernels")
    with pytest.raises(
        ValueError, match=r"inference: .* load it with .*language_backend=.llama., vision_backend=.clip."
    ):
        next(train(model, Stage(Schedule(1e-3, 2, 0), LENGTH, train_all), []))


def test_weights_in_half_precision_are_refused(small: Pair) -> None:
    """Before anything is compiled or changed: on Ascend the step would fail only when it is compiled, after loading."""
    model = Share4V(small[1].config, "float16")
    before = {name: value.asnumpy().copy() for name, value in model.parameters_and_names()}
    message = r"weights of dtype 'float16' cannot be trained: .*epsilon.*; create or load .* dtype='float32'"
    with pytest.raises(ValueError, match=message):
        next(train(model, Stage(Schedule(1e-3, 2, 0), LENGTH, train_all), []))
    with pytest.raises(ValueError, match=message):
        initialize(model, seed=0)
    assert all((value.asnumpy() == before[name]).all() for name, value in model.parameters_and_names())
    with pytest.raises(
        ValueError, match=r"'bfloat16' cannot be trained: .*does not accept bfloat16 gradients; .* precision='bfloat16'"
    ):
        check_trainable("bfloat16")
