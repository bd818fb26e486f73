"""A long test of the server: 32 clients, some of which leave, send nonsense or huge bodies, or read slowly.

    python benchmarks/serve_soak.py --minutes 5

Starts `share4v serve` with sharegpt4v-tiny, and compares its memory, threads, open files and /metrics with what the
clients saw. The last line is one JSON object. The exit status is 1 if something leaked or the counts differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from http_stream import ask
from serve import picture

PATH = "/v1/chat/completions"
KINDS = ("answer", "answer", "answer", "schema", "leaves", "leaves", "bad", "broken image", "huge", "slow", "half")
BODY_MB = 4  # the server's limit in this test
MARGIN_MB = 64  # of the memory at the end over the memory after the warm-up


def body(chance: random.Random, **fields: Any) -> dict[str, Any]:
    """Return a good request, with or without an image."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
    if chance.random() < 0.5:
        parts.append({"type": "image_url", "image_url": {"url": picture(chance.randrange(200), 224)}})
    return {"messages": [{"role": "user", "content": parts}], "temperature": 1, **fields}


async def send(url: str, data: bytes, length: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a body on a connection of its own; `length` is what the header says, by default the truth."""
    target = urlsplit(url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data) if length is None else length}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


async def status_of(url: str, data: bytes) -> int:
    """Return the status of the answer to a body; 0 if the server closed the connection before the body was sent."""
    try:
        reader, writer = await send(url, data)
        line = await reader.readline()
        writer.close()
        return int(line.split()[1]) if line else 0
    except (ConnectionError, OSError):
        return 0


async def one_request(url: str, kind: str, chance: random.Random, seen: Counter[str]) -> None:
    """Make a request of a kind, and count what came of it."""
    length = chance.randint(1, 40)
    if kind in ("answer", "schema"):
        fields: dict[str, Any] = {"max_tokens": length, "seed": chance.randrange(99)}
        if kind == "schema":
            schema = {"type": "array", "items": {"type": "string", "maxLength": chance.randint(1, 9)}, "maxItems": 3}
            fields |= {"max_tokens": length + 10, "guided_json": schema}
        answer = await ask(url, body(chance, **fields))
        seen[f"status {answer.status}"] += 1
        if answer.status == 200 and not answer.error:
            seen["answers"] += 1
            seen["tokens"] += answer.tokens
        elif answer.error and answer.status == 200:
            seen["errors in streams"] += 1
    elif kind == "leaves":
        data = json.dumps(body(chance, max_tokens=400, ignore_eos=True, stream=True)).encode()
        reader, writer = await send(url, data)
        await reader.read(chance.choice((1, 400, 2000)))
        writer.close()
    elif kind == "slow":
        data = json.dumps(body(chance, max_tokens=60, ignore_eos=True, stream=True)).encode()
        reader, writer = await send(url, data)
        for _ in range(20):
            if not await reader.read(200):
                break
            await asyncio.sleep(0.1)
        writer.close()
    elif kind == "half":
        _, writer = await send(url, b'{"messages": [', length=5000)
        await asyncio.sleep(chance.random())
        writer.close()
    else:
        wrong = {
            "bad": json.dumps(body(chance, temperature=-1)).encode(),
            "broken image": json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,AA=="}]}
                    ]
                }
            ).encode(),
            "huge": b" " * (BODY_MB + 1) * 2**20,
        }[kind]
        seen[f"{kind} {await status_of(url, wrong)}"] += 1


async def load(url: str, clients: int, seconds: float, seed: int) -> Counter[str]:
    """Run all clients for some time; return what they saw."""
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        while time.monotonic() < end:
            kind = chance.choice(KINDS)
            seen[kind] += 1
            await one_request(url, kind, chance, seen)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return seen


def metrics(url: str) -> Counter[str]:
    """Return the sums of the server's metrics over their labels."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if not line.startswith("#"):
            found[line.partition("{")[0].split()[0]] += float(line.rpartition(" ")[2])  # type: ignore[assignment]
    return found


def process_state(pid: int) -> dict[str, int]:
    """Return memory in MB, threads, and open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1024
    threads = int(re.findall(r"Threads:\s+(\d+)", status)[0])
    return {"memory_mb": resident, "threads": threads, "files": len(list(Path(f"/proc/{pid}/fd").iterdir()))}


def idle(url: str) -> Counter[str]:
    """Wait until the server has nothing to do; return its metrics."""
    for _ in range(300):
        found = metrics(url)
        if not found["share4v:answers_admitted"] and not found["vllm:num_requests_running"]:
            return found
        time.sleep(0.2)
    return metrics(url)


def problems(before: Counter[str], after: Counter[str], seen: Counter[str], states: list[dict[str, int]]) -> list[str]:
    """Return what is wrong."""
    found = []
    warm, last = states[1], states[-1]
    if last["memory_mb"] > warm["memory_mb"] + MARGIN_MB:
        found.append(f"memory rose from {warm['memory_mb']} to {last['memory_mb']} MB")
    if last["files"] > warm["files"] + 2 or last["threads"] > warm["threads"] + 4:
        found.append(f"files or threads rose: {warm} to {last}")
    if after["share4v:answers_admitted"] or after["vllm:num_requests_running"] or after["vllm:num_requests_waiting"]:
        found.append("slots are taken, but no client is there")
    finished = after["vllm:request_success_total"] - before["vllm:request_success_total"]
    cancelled = after["share4v:requests_cancelled_total"] - before["share4v:requests_cancelled_total"]
    if finished < seen["answers"] or finished + cancelled < seen["answers"]:
        found.append(f"{seen['answers']} answers were seen, but {finished:.0f} are counted")
    if after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] < seen["tokens"]:
        found.append("more tokens were seen than are counted")
    unexpected = [name for name in seen if re.fullmatch(r"(status|bad|broken image|huge) (0|5\d\d)", name)]
    unexpected = [name for name in unexpected if name != "huge 0"]  # the server may close before the body is sent
    return found + [f"{seen[name]} requests ended with: {name}" for name in unexpected]


def main() -> None:
    """Parse the command line, start a server, load it, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    flags = ["--port", "0", "--max-batch", "4", "--max-queue", "40", "--max-body-mb", str(BODY_MB), "--no-access-log"]
    command = [sys.executable, "-m", "mindone_share4v", "serve", *flags]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if server.stderr is None:
        raise RuntimeError("the server has no standard error")
    url = ""
    for line in server.stderr:
        url = (re.findall(r"listening on (\S+);", line) or [url])[0]
        if line.startswith("share4v: ready"):
            break
    try:
        states, seen = [process_state(server.pid)], Counter[str]()
        asyncio.run(load(url, arguments.clients, min(30.0, arguments.minutes * 12), arguments.seed + 1))  # warm-up
        before = idle(url)
        states.append(process_state(server.pid))
        seen = asyncio.run(load(url, arguments.clients, arguments.minutes * 60, arguments.seed))
        after = idle(url)
        states.append(process_state(server.pid))
    finally:
        server.terminate()
        status = server.wait(120)
    wrong = problems(before, after, seen, states) + ([f"exit status {status}"] if status else [])
    print(
        json.dumps({"minutes": arguments.minutes, "seen": dict(sorted(seen.items())), "states": states, "wrong": wrong})
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
