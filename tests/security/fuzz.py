"""Coverage-guided fuzzing of everything that reads a file of somebody else's.

    python tests/security/fuzz.py torch --seconds 600

Any exception but the errors that a target allows ends the run, prints the input's path and exits non-zero. CI runs a
few hundred inputs of each target, the same ones every time (test_fuzz.py); `--seconds` makes a run longer, and
`--corpus DIR` keeps what was found between runs. Needs atheris (https://github.com/google/atheris).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import sys
import tarfile
import tempfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
for _name in (
    "mindone",
    "mindone.models",
    "mindone.pipelines",
):  # without the upstream package, which imports MindSpore
    _module = sys.modules[_name] = types.ModuleType(_name)
    _module.__path__ = [str(ROOT / _name.replace(".", "/"))]  # type: ignore[attr-defined]


class Target(NamedTuple):
    """What is fuzzed: a reader of a file, and files to start from."""

    read: Callable[[Path], object]
    suffix: str
    seeds: Callable[[], list[bytes]]


def _read_tensors(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        from mindone.models.share4v.checkpoint.formats import mindspore_ckpt, safetensors_file, torch_zip

        openers = {
            "torch": torch_zip.open_torch,
            "safetensors": safetensors_file.open_safetensors,
            "ckpt": mindspore_ckpt.open_ckpt,
        }
        return [tensor.read().sum() for tensor in openers[name](path) if len(tensor.shape) < 3]

    return read


def _read_pickle(path: Path) -> object:
    from mindone.models.share4v.checkpoint.formats.torch_pickle import read_tensor_records

    return read_tensor_records(path.read_bytes(), path)


def _read_config(path: Path) -> object:
    from mindone.models.share4v.configuration import Share4VConfig

    return Share4VConfig.from_pretrained(path.parent)


def _read_tokenizer(path: Path) -> object:
    from mindone.models.share4v.processing.tokenizer import Tokenizer

    return Tokenizer(path).encode("a red circle")


def _read_image(path: Path) -> object:
    from mindone.models.share4v.processing.image_decoding import decode

    with path.open("rb") as file:
        return decode(file, str(path), 10_000_000).size


def _read_gguf(path: Path) -> object:
    """Read tensors, and try the metadata as that of a language model and of a vision tower."""
    from mindone.models.share4v.checkpoint.formats.gguf import open_gguf, open_gguf_model
    from mindone.models.share4v.checkpoint.gguf.metadata import read_text, read_vision
    from mindone.models.share4v.processing.gguf_vocabulary import template_of_gguf, tokenizer_arguments
    from mindone.models.share4v.processing.tokenizer import Tokenizer

    file = open_gguf(path)
    sums = [tensor.read().sum() for tensor in file.stored_tensors()]
    template_of_gguf(file.metadata)
    for step in (
        lambda: open_gguf_model(path),
        lambda: read_text(file),
        lambda: read_vision(file),
        lambda: Tokenizer(**tokenizer_arguments(file.metadata)).encode("a red circle"),
    ):
        with contextlib.suppress(ValueError):
            step()
    return sums


def _gguf_seeds() -> list[bytes]:
    """A minimal file; and the metadata, with few tensors, of a language model and of a vision tower."""
    import gguf
    import numpy as np

    sizes = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
    vision = ("image_size", "patch_size", "embedding_length", "feed_forward_length", "block_count")
    language = {
        **{f"llama.{name}": 8 for name in sizes},
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "\u2581", "a", "<x>"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -1000.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 4],
        "tokenizer.chat_template": "USER: ASSISTANT:",
        "split.count": 1,
    }
    tower = {
        **{f"clip.vision.{name}": 8 for name in (*vision, "attention.head_count")},
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.feature_layer": [8],
        "clip.projector_type": "mlp",
        "clip.use_gelu": False,
    }
    seeds = [_plain_gguf_seed()]
    with tempfile.TemporaryDirectory() as folder:
        for architecture, stated in (("llama", language), ("clip", tower)):
            path = Path(folder) / f"{architecture}.gguf"
            writer = gguf.GGUFWriter(path, architecture)
            for key, value in stated.items():
                add = {
                    int: writer.add_uint32,
                    float: writer.add_float32,
                    str: writer.add_string,
                    list: writer.add_array,
                }
                (writer.add_bool if isinstance(value, bool) else add[type(value)])(key, value)  # type: ignore[operator]
            writer.add_tensor("token_embd.weight", np.zeros((6, 8), np.float32))
            writer.add_tensor("v.patch_embd.weight", np.zeros((8, 3, 2, 2), np.float16))
            writer.add_tensor(
                "blk.0.attn_q.weight", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0
            )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            seeds.append(path.read_bytes())
    return seeds


def _plain_gguf_seed() -> bytes:
    """Two tensors (F32, Q4_0) and one metadata entry of each kind."""
    entries = [
        (b"a", 4, (7).to_bytes(4, "little")),
        (b"b", 8, (1).to_bytes(8, "little") + b"t"),
        (b"c", 9, (8).to_bytes(4, "little") + (1).to_bytes(8, "little") + (2).to_bytes(8, "little") + b"xy"),
    ]
    infos = [(b"x", 2, 0, 0), (b"y", 32, 2, 32)]
    data = b"GGUF" + (3).to_bytes(4, "little") + len(infos).to_bytes(8, "little") + len(entries).to_bytes(8, "little")
    for key, kind, value in entries:
        data += len(key).to_bytes(8, "little") + key + kind.to_bytes(4, "little") + value
    for name, size, kind, offset in infos:
        data += len(name).to_bytes(8, "little") + name + (1).to_bytes(4, "little") + size.to_bytes(8, "little")
        data += kind.to_bytes(4, "little") + offset.to_bytes(8, "little")
    return data + bytes(-len(data) % 32) + bytes(64)


def _read_data_set(path: Path) -> object:
    """List the inputs of a file and read each; what is wrong with one is that one's ItemError."""
    from mindone.pipelines.image_to_text.dataset.readers import ItemError, Reader, ReaderOptions, list_inputs

    reader, found = Reader(downloads=None), 0
    for item in list_inputs([str(path)], ReaderOptions()):
        try:
            found += len(reader.data(item))
        except ItemError as error:
            json.dumps(str(error))
    return found


def _tar_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("0.png", _image_seeds()[0]), ("0.txt", b"a caption"), ("x" * 120 + ".jpg", b"no image")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return [buffer.getvalue()]


def _zip_seeds() -> list[bytes]:
    """Members with and without compression, one in a directory, and one that is encrypted by its flags."""
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("0.png", _image_seeds()[0])
            archive.writestr("0.txt", b"a caption")
            archive.writestr("folder/\u00e9.jpg", b"no image")
        seeds.append(buffer.getvalue())
    encrypted = bytearray(seeds[0])
    encrypted[6] |= 1
    encrypted[seeds[0].index(b"PK\x01\x02") + 8] |= 1
    return [*seeds, bytes(encrypted)]


def _csv_seeds() -> list[bytes]:
    return [b'image,caption\na.png,one\n"b, c.png","two\nlines"\n', b"path\tlabel\nx.jpg\t1\n"]


def _jsonl_seeds() -> list[bytes]:
    return [b'{"image": "a.png", "caption": "one"}\n{"image": {"bytes": "aGk=", "path": null}}\n']


def _arrow_seeds() -> list[bytes]:
    import pyarrow as pa

    table = pa.table({"image": [_image_seeds()[0], b"no image", None], "caption": ["a", None, "b"]})
    seeds = []
    for new_file in (pa.ipc.new_file, pa.ipc.new_stream):
        sink = pa.BufferOutputStream()
        with new_file(sink, table.schema) as writer:
            writer.write_table(table)
        seeds.append(sink.getvalue().to_pybytes())
    return seeds


def _pickle_seed() -> bytes:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00(K\x02K\x02t(K\x02K\x01t" + hooks + b"tR"
    return b"\x80\x02}q\x00X\x01\x00\x00\x00x" + tensor + b"s."


def _torch_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", _pickle_seed())
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/data/0", bytes(16))
    return [buffer.getvalue()]


def _safetensors_seeds() -> list[bytes]:
    import numpy as np
    from safetensors.numpy import save

    return [save({"x": np.ones((2, 2), np.float32), "y": np.zeros(3, np.int8)})]


def _ckpt_seeds() -> list[bytes]:
    tensor = b"\x08\x02\x08\x02\x12\x07Float32\x1a\x10" + bytes(16)
    value = b"\x0a\x01x\x12" + bytes([len(tensor)]) + tensor
    return [b"\x0a" + bytes([len(value)]) + value]


TINY = ROOT / "mindone" / "models" / "share4v" / "assets" / "sharegpt4v-tiny"


def _image_seeds() -> list[bytes]:
    from PIL import Image

    seeds = []
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 7), "red").save(buffer, form)
        seeds.append(buffer.getvalue())
    return seeds


TARGETS = {
    "pickle": Target(_read_pickle, ".pkl", lambda: [_pickle_seed()]),
    "torch": Target(_read_tensors("torch"), ".bin", _torch_seeds),
    "safetensors": Target(_read_tensors("safetensors"), ".safetensors", _safetensors_seeds),
    "ckpt": Target(_read_tensors("ckpt"), ".ckpt", _ckpt_seeds),
    "gguf": Target(_read_gguf, ".gguf", _gguf_seeds),
    "config": Target(_read_config, ".json", lambda: [(TINY / "config.json").read_bytes()]),
    "tokenizer": Target(_read_tokenizer, ".model", lambda: [(TINY / "tokenizer.model").read_bytes()]),
    "image": Target(_read_image, ".png", _image_seeds),
    "tar": Target(_read_data_set, ".tar", _tar_seeds),
    "zip": Target(_read_data_set, ".zip", _zip_seeds),
    "csv": Target(_read_data_set, ".csv", _csv_seeds),
    "jsonl": Target(_read_data_set, ".jsonl", _jsonl_seeds),
    "arrow": Target(_read_data_set, ".arrow", _arrow_seeds),
}
# What a reader may raise: its own errors, and what the system says of a file.
ALLOWED = (ValueError, OSError)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="end after this many inputs, if that is sooner")
    parser.add_argument("--seed", type=int, default=0, help="the same seed and --runs try the same inputs (0: random)")
    parser.add_argument("--corpus", type=Path, help="a directory that keeps interesting inputs between runs")
    arguments = parser.parse_args()
    import atheris

    target = TARGETS[arguments.target]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        corpus = arguments.corpus or work / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        name = "config.json" if target.suffix == ".json" else f"input{target.suffix}"
        path = work / name
        with atheris.instrument_imports(include=["mindone"]):
            path.write_bytes(target.seeds()[0])
            target.read(path)  # imports what the reader needs, so that it is instrumented

        def once(data: bytes) -> None:
            path.write_bytes(data)
            try:
                target.read(path)
            except ALLOWED as error:
                json.dumps(str(error))  # a message must be one that can be printed

        # A process inherits the peak of the one that started it, which a test's worker may have driven up.
        inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        flags = [
            f"-max_total_time={arguments.seconds}",
            f"-runs={arguments.runs}",
            f"-seed={arguments.seed}",
            f"-rss_limit_mb={inherited + 2048}",
            "-timeout=20",
            "-max_len=65536",
        ]
        flags += [f"-artifact_prefix={tempfile.gettempdir()}/fuzz-{arguments.target}-", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
