"""Compare `share4v serve` with llama.cpp's server: the same shape, images, questions and slots, in turn.

    python benchmarks/serve_peers.py --prepare DIRECTORY --ours int4 --peer q4_0
    python benchmarks/serve_peers.py --directory DIRECTORY --ours int4 --peer q4_0 --llama-server BIN/llama-server \
        --clients 8 --requests 8 --save

`--prepare` writes a checkpoint with random weights, converts it as `share4v convert` does, to ours and to GGUF with
mmproj, and ends. Every answer has `--max-tokens` tokens on both sides (`ignore_eos`), and every request an own image.
Both servers run for the whole measurement, and only one of them works at a time. `--save` adds the rounds to those
in benchmarks/results/ of the same machine, commit and pair, so that a long measurement can be made in parts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import machine
import serve
from http_stream import Answer
from results import Store, commit
from shapes import SHAPES

START_SECONDS = 180.0
CONTEXT = 2048  # tokens of a slot
SYSTEM = "A chat between a curious human and an artificial intelligence assistant that answers in detail."
# Ways to run llama.cpp's server; the best of them counts. Flash attention is on in all.
VARIANTS = {"split": ["--no-kv-unified"], "unified": ["--kv-unified"]}


def prepare(directory: Path, shape: str, ours: str, peer: str) -> None:
    """Write the checkpoint, ours and the pair of GGUF files, as far as they do not exist."""
    from random_checkpoint import write_checkpoint

    from mindone.models.share4v import convert, export_gguf

    source = directory / "float16"
    if not source.exists():
        write_checkpoint(shape, source)
    if not (directory / ours).exists():
        convert(source, directory / ours, dtype=ours, fast=ours == "int4", progress=False)
    if not (directory / f"{peer}.gguf").exists():
        export_gguf(source, directory / f"{peer}.gguf", directory / f"mmproj-{peer}.gguf", dtype=peer)


@contextmanager
def running(command: list[str], log: Path) -> Iterator[str]:
    """Start a server on a free port, wait until it is healthy, and end it; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ)
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not asyncio.run(is_healthy(port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def is_healthy(port: int) -> bool:
    """Return whether a server answers /health with 200."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    status = (await reader.readline()).split()
    writer.close()
    return status[1:2] == [b"200"]


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the command of each server, without its port."""
    directory, threads = options.directory, str(options.threads)
    ours = [sys.executable, "-m", "mindone_share4v", "serve", "--model", str(directory / options.ours)]
    ours += ["--max-batch", str(options.slots), "--no-access-log"]
    peer = [options.llama_server, "--model", str(directory / f"{options.peer}.gguf"), "--host", "127.0.0.1"]
    peer += ["--mmproj", str(directory / f"mmproj-{options.peer}.gguf"), "--parallel", str(options.slots)]
    peer += ["--ctx-size", str(CONTEXT * options.slots), "--threads", threads, "--threads-batch", threads]
    peer += ["--flash-attn", "on", "--no-webui", "--offline", *options.peer_options]
    variants = {name: VARIANTS[name] for name in options.variants}
    return {"ours": ours} | {f"llama.cpp {name}": [*peer, *more] for name, more in variants.items()}


async def load(address: str, options: argparse.Namespace, clients: int, first: int) -> tuple[list[Answer], float]:
    """Send the requests of one round from `clients` clients; return the answers and the seconds."""
    wanted = argparse.Namespace(
        base_url=address, api_key=None, clients=clients, prompt=options.prompt, images=10**9, side=options.side,
        max_tokens=options.max_tokens, model=None, ignore_eos=True,
    )  # fmt: skip
    bodies = serve.bodies(wanted, options.requests, first)
    for body in bodies:
        body["messages"].insert(0, {"role": "system", "content": SYSTEM})
    start = time.perf_counter()
    answers = await serve.closed_loop(wanted, bodies)
    return answers, time.perf_counter() - start


def check(name: str, answers: list[Answer], tokens: int) -> None:
    """Check that every request was answered with all its tokens.

    Raises:
        SystemExit: one was not, so the speeds cannot be compared.
    """
    wrong = [(one.status, one.tokens, one.error) for one in answers if one.error or one.tokens != tokens]
    if wrong:
        raise SystemExit(f"{name}: {len(wrong)} of {len(answers)} answers do not have {tokens} tokens: {wrong[0]}")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the rounds, and return the figures of each server in each."""
    rounds = []
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(running(command, options.directory / f"{name.replace(' ', '-')}.log"))
            for name, command in commands(options).items()
        }
        for name, address in addresses.items():
            warm = argparse.Namespace(**{**vars(options), "requests": 1})
            check(name, asyncio.run(load(address, warm, 1, 10**6))[0], options.max_tokens)
        machine.require_idle(options.allow_busy)
        for number in range(options.rounds):
            for name, address in addresses.items():
                time.sleep(0.5)  # until the other server's threads have stopped spinning
                answers, seconds = asyncio.run(load(address, options, options.clients, number * options.requests))
                check(name, answers, options.max_tokens)
                result = serve.summary(answers, seconds)
                result["prompt_tokens"] = sorted({one.prompt_tokens for one in answers})
                result["samples"] = {
                    "first_token": [round(one.pieces[0] - one.sent, 4) for one in answers],
                    "between": [
                        round(later - earlier, 4)
                        for one in answers
                        for earlier, later in zip(one.pieces, one.pieces[1:], strict=False)
                    ],
                }
                rounds.append({"server": name, **result})
                shown = {key: result[key] for key in ("tokens_per_second", "time_to_first_token_ms", "prompt_tokens")}
                print(f"{name}: {shown}", flush=True)
    return rounds


def main() -> None:
    """Parse the command line, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="DIRECTORY", help="write the models there, and end")
    parser.add_argument("--directory", type=Path, help="where --prepare wrote them")
    parser.add_argument("--shape", choices=SHAPES, default="7b-8l")
    parser.add_argument("--ours", choices=("int4", "int8"), default="int4")
    parser.add_argument("--peer", choices=("q4_0", "q8_0"), default="q4_0")
    parser.add_argument("--llama-server", help="path of llama.cpp's server, compiled for this machine")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=["split"], help=", ".join(VARIANTS))
    parser.add_argument("--peer-options", type=str.split, default=[], help="further options of llama.cpp's server")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--requests", type=int, default=8, help="of a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--side", type=int, default=336, help="width and height of an image")
    parser.add_argument("--prompt", default="Describe this image in detail.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allow-busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--save", action="store_true", help="add the rounds to benchmarks/results")
    options = parser.parse_args()
    if options.prepare:
        prepare(options.prepare, options.shape, options.ours, options.peer)
        return
    if not (options.directory and options.llama_server):
        parser.error("--directory and --llama-server are needed")
    rounds = measure(options)
    about = {
        name: getattr(options, name) for name in ("shape", "ours", "peer", "clients", "slots", "max_tokens", "side")
    }
    if options.save:
        Store.of_this_machine().add_rounds("serve", about, rounds)
    print(json.dumps({**about, "commit": commit(), "rounds": rounds, "machine": machine.describe()}))


if __name__ == "__main__":
    main()
