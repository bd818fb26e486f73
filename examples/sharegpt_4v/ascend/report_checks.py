"""The checks of report.py; each takes the settings and returns what the report says about it.

`python report_checks.py` writes expected_logits.json, with float32 on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCENE = HERE.parent / "scene.png"
EXPECTED = HERE / "expected_logits.json"
QUESTION = "Describe this image"
CAPTION = (
    "In the top left there are four small blue stars. In the bottom left there are two small yellow squares. "
    "In the bottom right there is a large red circle. The background is light blue."
)
PACKAGES = ("mindspore", "mindone", "mindone-share4v", "numpy", "transformers", "safetensors", "te", "hccl")
VARIABLES = ("ASCEND", "ATB", "CANN", "HCCL", "MS", "GLOG", "OMP", "SHARE4V", "RANK", "DEVICE")
# Largest error of logits as a share of the largest one: some units of the type for each layer that rounds.
ALLOWED = {"float32": 1e-4, "float16": 16 * 2.0**-11, "bfloat16": 16 * 2.0**-8}
RANKS = 2  # of msrun
TOPS = 5  # logits that are stored for each token of the caption
Result = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        device: "Ascend" or "CPU".
        model: of the checks of speed and memory.
        patience: factor for time limits.
        dtype: of caption, speed and memory; None: bfloat16 where the device has it, else float16.
    """

    device: str
    model: str
    patience: float = 1.0
    dtype: str | None = None

    def flags(self) -> list[str]:
        """Return the flags that give these settings to another process."""
        flags = ["--device", self.device, "--model", self.model, "--patience", str(self.patience)]
        return flags if self.dtype is None else [*flags, "--dtype", self.dtype]

    def half(self) -> str:
        """Return the dtype of caption, speed and memory, once the device was chosen."""
        return self.dtype or ("bfloat16" if self.supports("bfloat16") else "float16")

    def use_device(self) -> None:
        """Choose the device.

        Raises:
            RuntimeError, ValueError: MindSpore cannot use it.
        """
        import mindspore as ms

        ms.set_device(self.device)

    def supports(self, dtype: str) -> bool:
        """Return whether MindSpore's device, which was chosen before, has this dtype as cells."""
        from mindone.models.share4v.nn.fused import Arithmetic

        try:
            Arithmetic.of(dtype)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        title: what it does.
        run: returns its result, with a "status".
        seconds: its time limit; the first use of an operator may compile it for minutes.
    """

    title: str
    run: Callable[[Settings], Result]
    seconds: float = 900


def environment(settings: Settings) -> Result:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    found = sorted(name for name in os.environ if name.startswith(VARIABLES))
    return {
        "status": "ok",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "versions": versions,
        "cann": cann_versions(),
        # Values may name directories, hosts and users; numbers and words such as "all" or "O2" do not.
        "variables": {name: os.environ[name] if os.environ[name].isalnum() else "set" for name in found},
    }


def cann_versions() -> list[str]:
    """Return the versions of CANN that its files state."""
    home = os.environ.get("ASCEND_TOOLKIT_HOME") or "/usr/local/Ascend/ascend-toolkit/latest"
    found = set()
    for file in Path(home).glob("*/version.info"):
        text = file.read_text(encoding="utf-8", errors="replace")
        found |= {line.strip() for line in text.splitlines() if line.lower().startswith("version=")}
    return sorted(found) or ["no version file was found"]


def npu_smi(settings: Settings) -> Result:
    """Run npu-smi; the table of processes, which has names and ids, is left out."""
    if shutil.which("npu-smi") is None:
        return {"status": "not supported", "message": "npu-smi is not installed"}
    done = subprocess.run(["npu-smi", "info"], capture_output=True, text=True, timeout=60, errors="replace")
    shown = done.stdout.split("| NPU     Chip              | Process id")[0]
    return {
        "status": "ok" if done.returncode == 0 else "failed",
        "output": shown.rstrip("+=\n "),
        "exit": done.returncode,
    }


def device(settings: Settings) -> Result:
    """Multiply two matrices on the device."""
    import mindspore as ms
    import numpy as np
    from mindspore import ops

    settings.use_device()
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    ours = ops.matmul(ms.Tensor(a), ms.Tensor(a.T)).asnumpy()
    target = ms.get_context("device_target")
    right = bool(np.array_equal(ours, a @ a.T)) and target == settings.device
    return {"status": "ok" if right else "failed", "device": target, "product": ours.tolist()}


def operators(dtype: str, settings: Settings) -> Result:
    """Run check_operators.py, which compares each operator with NumPy in float64."""
    command = [sys.executable, str(HERE / "check_operators.py"), "--dtype", dtype, "--device", settings.device]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"operator"')]
    if not reports:
        return {"status": "failed", "message": done.stderr[-1500:]}
    states = {report["status"] for report in reports}
    status = "ok" if states <= {"ok", "not supported"} else "failed"
    return {"status": "not supported" if states == {"not supported"} else status, "operators": reports}


def tiny(dtype: str) -> Any:
    """Return sharegpt4v-tiny as cells."""
    from mindone.models.share4v import Share4V

    return Share4V.from_pretrained(
        "sharegpt4v-tiny", dtype=dtype, language_backend="mindspore", vision_backend="mindspore"
    )


def caption_logits(model: Any) -> Any:
    """Return the model's logits [T, V] of each token of the scene's caption, float32, given those before it."""
    import numpy as np

    from mindone.models.share4v import Share4VProcessor
    from mindone.models.share4v.processing.image_loading import load_image

    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    inputs = processor(images=[load_image(SCENE)], text=QUESTION)
    answer = json.loads(EXPECTED.read_text(encoding="utf-8"))["ids"]
    ids = np.concatenate([np.asarray(inputs["input_ids"])[0], answer])[None]
    output = model(ids, inputs["pixel_values"])
    return output.logits.float().asnumpy()[0, -len(answer) - 1 : -1]


def parity(dtype: str, settings: Settings) -> Result:
    """Compare logits with stored ones of float32 on a CPU, the largest of each token."""
    import numpy as np

    settings.use_device()
    if not settings.supports(dtype):
        return {"status": "not supported"}
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    tops, wanted = np.array(expected["tops"]), np.array(expected["logits"])  # [T, TOPS]
    logits = caption_logits(tiny(dtype))
    error = float(np.abs(np.take_along_axis(logits, tops, 1) - wanted).max() / np.abs(wanted).max())
    same = int((logits.argmax(-1) == tops[:, 0]).sum())
    right = error <= ALLOWED[dtype] and same == len(tops)
    return {
        "status": "ok" if right else "failed",
        "error": error,
        "allowed": ALLOWED[dtype],
        "same_top": f"{same} of {len(tops)}",
    }


def integers(dtype: str, settings: Settings) -> Result:
    """Compare a model with integer weights with one of the floats that the same integers mean, on the device."""
    import mindspore as ms
    import numpy as np

    from mindone.models.share4v.nn.integer_linear import IntegerLinear

    settings.use_device()
    if not settings.supports(dtype):
        return {"status": "not supported"}
    rounded, plain = tiny(dtype), tiny("float16")
    layers = {cell.weight.name: cell for _, cell in rounded.cells_and_names() if isinstance(cell, IntegerLinear)}
    for name, parameter in plain.parameters_and_names():
        if name in layers:
            parameter.set_data(ms.Tensor(layers[name].restored(), parameter.dtype))
    ours, wanted = caption_logits(rounded), caption_logits(plain)
    error = float(np.abs(ours - wanted).max() / np.abs(wanted).max())
    right = bool(layers) and error <= 2 * ALLOWED["float16"]
    return {"status": "ok" if right else "failed", "error": error, "integer_matrices": len(layers)}


def caption(settings: Settings) -> Result:
    """Caption the README's scene with the default operators, prefill and decoding included."""
    from mindone.models.share4v import Share4VProcessor
    from mindone.models.share4v.processing.image_loading import load_image

    settings.use_device()
    dtype = settings.half()
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    ids = tiny(dtype).generate(**processor(images=[load_image(SCENE)], text=QUESTION), max_new_tokens=64)
    (text,) = processor.batch_decode(ids)
    return {"status": "ok" if text == CAPTION else "failed", "dtype": dtype, "caption": text}


def speed(settings: Settings) -> Result:
    """Run throughput.py."""
    settings.use_device()
    dtype = settings.half()
    command = [sys.executable, str(HERE / "throughput.py"), "--device", settings.device, "--dtype", dtype]
    command += ["--model", settings.model, "--tokens", "16", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for report in reports:
        del report["model"]
    if done.returncode or not reports:
        return {"status": "failed", "message": done.stderr[-1500:]}
    return {"status": "ok", "batches": reports}


def memory(settings: Settings) -> Result:
    """Compare MindSpore's figure after a caption with the computed one."""
    import mindspore as ms

    from mindone.models.share4v import Share4V, Share4VProcessor
    from mindone.models.share4v.device_memory import device_memory
    from mindone.models.share4v.processing.image_loading import load_image

    settings.use_device()
    dtype = settings.half()
    model = Share4V.from_pretrained(
        settings.model, dtype=dtype, language_backend="mindspore", vision_backend="mindspore"
    )
    processor = Share4VProcessor.from_pretrained(settings.model)
    model.generate(**processor(images=[load_image(SCENE)], text=QUESTION), max_new_tokens=4)
    context = min(1024, model.config.text_config.context_length)
    computed = device_memory(model.config, dtype, 1, context)
    mebibytes = {name: round(getattr(computed, name) / 2**20, 1) for name in ("weights", "cache", "activations")}
    if settings.device != "Ascend":
        return {"status": "not supported", "message": "MindSpore counts a device's memory only", "computed": mebibytes}
    used = {"allocated": ms.runtime.max_memory_allocated(), "reserved": ms.runtime.max_memory_reserved()}
    measured = {name: round(count / 2**20, 1) for name, count in used.items()}
    return {"status": "ok", "dtype": dtype, "computed_mib": mebibytes, "measured_mib": measured}


def training(settings: Settings) -> Result:
    """Train a random model for three steps on one batch, in each precision of the device: the loss must fall."""
    import numpy as np

    from mindone.models.share4v import ProjectorConfig, Share4V, Share4VConfig, TextConfig, VisionConfig
    from mindone.models.share4v.training.initialization import initialize
    from mindone.models.share4v.training.loss import make_batch
    from mindone.models.share4v.training.precision import LossScaling
    from mindone.models.share4v.training.trainer import Schedule, Stage, train, train_all

    settings.use_device()
    text = TextConfig(50, 64, 96, 1, 2, 2, max_position_embeddings=64)
    vision = VisionConfig(64, 96, 2, 2, image_size=28, patch_size=14)
    ids = np.array([[1, -200, *range(5, 13)], [1, *range(5, 13), -200]])
    labels = np.where((np.arange(10) > 3) & (ids >= 0), ids, -100)
    pixels = np.random.default_rng(0).normal(0, 1, (2, 3, 28, 28)).astype(np.float32)
    losses: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16", "float16"):
        if not settings.supports(precision):
            continue
        model = Share4V(Share4VConfig(vision, ProjectorConfig("mlp2x_gelu"), text), "float32")
        initialize(model, seed=0)
        batch = make_batch(model, pixels, ids, np.ones_like(ids), labels, 16)
        # With the default scale of 65536 a run's first steps in float16 are skipped until it is small enough.
        scaling = LossScaling(256.0)
        stage = Stage(Schedule(1e-3, 3, 0), 16, train_all, precision=precision, loss_scaling=scaling)
        losses[precision] = [round(loss, 4) for loss in train(model, stage, [batch] * 3)]
    falls = all(np.isfinite(each).all() and each[2] < each[0] for each in losses.values())
    return {"status": "ok" if falls else "failed", "losses": losses}


def ranks(settings: Settings) -> Result:
    """Caption a folder with two ranks of msrun."""
    program = Path(sys.executable).with_name("msrun")
    if not program.is_file():
        return {"status": "not supported", "message": "msrun is not installed beside this Python"}
    if settings.device == "Ascend":
        from mindspore.device_context import ascend

        if ascend.is_available() and ascend.device_count() < RANKS:
            return {"status": "not supported", "message": "every rank needs a card of its own, and there is one card"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        photos.mkdir()
        for number in range(4):
            shutil.copy(SCENE, photos / f"{number}.png")
        options = [
            f"--worker_num={RANKS}",
            f"--local_worker_num={RANKS}",
            f"--master_port={port}",
            "--join=True",
            "--log_dir=log",
        ]
        job = ["python", "-m", "mindone_share4v", "caption-dataset", "photos", "--out", "captions.jsonl"]
        here = f"{program.parent}{os.pathsep}{os.environ['PATH']}"  # msrun calls `python`
        done = subprocess.run(
            [str(program), *options, *job], cwd=place, env={**os.environ, "PATH": here}, capture_output=True, text=True,
            errors="replace",
        )  # fmt: skip
        out = Path(place) / "captions.jsonl"
        texts = [json.loads(line)["caption"] for line in out.read_text().splitlines()] if out.is_file() else []
    if texts != [CAPTION] * 4:
        return {"status": "failed", "captions": texts, "message": (done.stdout + done.stderr)[-1500:]}
    return {"status": "ok", "captions": len(texts)}


CHECKS: dict[str, Check] = {
    "environment": Check("versions", environment, 60),
    "npu-smi": Check("the cards", npu_smi, 120),
    "device": Check("one product on the device", device, 300),
    "operators-float16": Check("each operator against NumPy", partial(operators, "float16"), 3600),
    "operators-bfloat16": Check("each operator against NumPy", partial(operators, "bfloat16"), 3600),
    "parity-float32": Check("logits of sharegpt4v-tiny against stored float32", partial(parity, "float32")),
    "parity-float16": Check("logits of sharegpt4v-tiny against stored float32", partial(parity, "float16")),
    "parity-bfloat16": Check("logits of sharegpt4v-tiny against stored float32", partial(parity, "bfloat16")),
    "int8": Check("int8 weights against the floats that they mean", partial(integers, "int8")),
    "int4": Check("int4 weights against the floats that they mean", partial(integers, "int4")),
    "caption": Check("the caption of the README's scene", caption),
    "speed": Check("captions per batch size", speed, 3600),
    "memory": Check("memory of a caption", memory, 3600),
    "training": Check("three steps of training", training),
    "msrun": Check("a folder on two ranks", ranks),
}


def write_expected() -> None:
    """Write the logits of float32 on a CPU."""
    import numpy as np

    from mindone.models.share4v import Share4VProcessor

    ids = Share4VProcessor.from_pretrained("sharegpt4v-tiny").tokenizer.encode(CAPTION)
    content: dict[str, Any] = {"question": QUESTION, "ids": [int(token) for token in ids if token != 1]}  # no BOS
    EXPECTED.write_text(json.dumps(content), encoding="utf-8")
    logits = caption_logits(tiny("float32"))
    tops = np.argsort(-logits, 1)[:, :TOPS]
    content["tops"] = tops.tolist()
    content["logits"] = np.take_along_axis(logits, tops, 1).astype(float).round(4).tolist()
    EXPECTED.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_expected()
