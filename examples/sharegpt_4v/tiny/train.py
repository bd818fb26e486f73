"""Train sharegpt4v-tiny from scratch on rendered scenes, in the two stages of the recipe; 40 minutes on two cores."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from captions import caption, question
from scenes import PICTURE_SIZE, render, sample_scene, scene_rng
from vocabulary import VOCABULARY_SIZE, train_vocabulary

from mindone.models.share4v import (
    ProjectorConfig,
    Share4V,
    Share4VConfig,
    Share4VProcessor,
    TextConfig,
    VisionConfig,
    convert,
)
from mindone.models.share4v.processing.image_processor import ImageProcessor
from mindone.models.share4v.processing.tokenizer import Tokenizer
from mindone.models.share4v.training.initialization import initialize
from mindone.models.share4v.training.labels import TrainingText, collate, tokenize_conversation
from mindone.models.share4v.training.loss import Batch, make_batch
from mindone.models.share4v.training.trainer import Schedule, Stage, Trainer, train_all

CONFIG = Share4VConfig(
    vision_config=VisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=PICTURE_SIZE,
        patch_size=24,
    ),
    projector_config=ProjectorConfig("mlp2x_gelu"),
    text_config=TextConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
    ),
    image_aspect_ratio="pad",
    torch_dtype="float16",
)


@dataclass(frozen=True)
class Course:
    """The data and the schedule of one training stage.

    Attributes:
        name: also the name of the directory that its checkpoint is written to.
        template: conversation template; "plain" has no question, as in the recipe's first stage.
        groups: maximum number of groups in a scene.
        steps: number of batches.
        peak: maximum learning rate.
        width: length of a padded sequence in token ids; an image counts as one id.
        seed: seed of the scenes.
    """

    name: str
    template: str
    groups: int
    steps: int
    peak: float
    width: int
    seed: int


COURSES = (
    Course("pictures", "plain", groups=3, steps=2400, peak=1.5e-3, width=44, seed=1),
    Course("questions", "vicuna_v1", groups=3, steps=300, peak=5e-4, width=92, seed=2),
)
BATCH_SIZE = 64


def examples(course: Course, processor: Share4VProcessor) -> Iterator[tuple[np.ndarray, TrainingText]]:
    """Yield pixel values [3, S, S] and the tokenized conversation of one scene after another, without repetition."""
    index = 0
    while True:
        rng = scene_rng(course.seed, index)
        index += 1
        scene = sample_scene(rng)
        if len(scene.groups) > course.groups:
            continue
        image = render(scene, rng)
        answer = caption(scene, rng)
        prompt = "<image>" if course.template == "plain" else f"<image>\n{question(rng)}"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        yield processor.image_processor(image), tokenize_conversation(processor, messages, course.template)


def batches(course: Course, model: Share4V, processor: Share4VProcessor, length: int) -> Iterator[Batch]:
    """Yield batches of equal shape; a thread renders the next batch while the model trains on the current one."""
    source = examples(course, processor)

    def batch() -> Batch:
        images, texts = zip(*(next(source) for _ in range(BATCH_SIZE)), strict=True)
        return make_batch(model, np.stack(images), *collate(texts, course.width), length)

    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(batch)
        while True:
            ready, upcoming = upcoming, pool.submit(batch)
            yield ready.result()


def run(course: Course, model: Share4V, processor: Share4VProcessor, precision: str = "float32") -> None:
    """Train one course and print its mean loss every 25 steps, and the number of steps that float16 skipped."""
    length = course.width - 1 + model.config.num_image_tokens
    warmup = max(20, course.steps * 3 // 100)
    stage = Stage(Schedule(course.peak, course.steps, warmup), length, train_all, beta2=0.98, precision=precision)
    start = time.perf_counter()
    losses: list[float] = []
    skipped = 0
    for step in Trainer(model, stage).train(batches(course, model, processor, length)):
        skipped += step.skipped
        losses.append(step.loss)
        if step.number % 25 == 0 or step.number == course.steps:
            seconds = round(time.perf_counter() - start, 1)
            line = {"course": course.name, "step": step.number, "loss": round(float(np.mean(losses)), 4)}
            line |= {"skipped": skipped} if precision == "float16" else {}
            print(json.dumps({**line, "seconds": seconds}), flush=True)
            losses = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="directory to write; a course that is finished in it is not repeated"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype in which the model computes while it is trained; weights are float32 (bfloat16: on Ascend only)",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    vocabulary = args.out / "tokenizer.model"
    train_vocabulary(vocabulary)
    processor = Share4VProcessor(ImageProcessor.from_config(CONFIG), Tokenizer(vocabulary))
    model = Share4V(CONFIG)
    initialize(model, args.seed)
    for course in COURSES:
        done = args.out / course.name
        if (done / "model.safetensors").is_file():  # the last file that a finished course writes
            model = Share4V.from_pretrained(done, language_backend="llama", vision_backend="clip")
            continue
        run(course, model, processor, args.precision)
        processor.save_pretrained(done)
        model.save_pretrained(done)
    convert(args.out / COURSES[-1].name, args.out / "checkpoint", dtype="float16")


if __name__ == "__main__":
    main()
