"""Load on a server with OpenAI's API: requests and tokens per second, time to first token, time between tokens.

    share4v serve --model sharegpt4v-tiny --port 8000 > /dev/null &
    python benchmarks/serve.py --base-url http://127.0.0.1:8000 --clients 16 --requests 200
    python benchmarks/serve.py --base-url http://127.0.0.1:8000 --rate 4 --requests 200

Closed loop: each of N clients sends its next request when its last one is answered. Open loop (`--rate`): requests
arrive at random times (Poisson), however many are running; what the server refuses with 429 is counted. Every request
has an image of its own unless `--images` is smaller, so that a cache of features does not help. The last line is one
JSON object; times are in milliseconds.

Two figures of what the server adds to the model are from `share4v serve` alone. `outside_engine` is the share of a
request's time in which it was neither in the engine's queue nor in its batch, by the server's own `timings`; on a busy
machine it contains waiting for a CPU. `cpu_ms_per_answer` is CPU time by what it was spent on, from `/metrics`, and
`outside_model_cpu` the share of all that was not for the model: it needs no idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from http_stream import Answer, ask
from machine import describe
from PIL import Image

PERCENTILES = (50, 95, 99)


def picture(number: int, side: int) -> str:
    """Return an image as a data URI: coloured squares, others for each number."""
    noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def bodies(arguments: argparse.Namespace, count: int, offset: int) -> list[dict[str, Any]]:
    """Return the bodies of `count` requests."""
    found = []
    for number in range(offset, offset + count):
        parts: list[dict[str, Any]] = [{"type": "text", "text": arguments.prompt}]
        if arguments.images:
            url = picture(number % arguments.images, arguments.side)
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": arguments.max_tokens, "temperature": 0}
        found.append(body | ({"model": arguments.model} if arguments.model else {}))
        if arguments.ignore_eos:
            found[-1]["ignore_eos"] = True
    return found


async def closed_loop(arguments: argparse.Namespace, requests: list[dict[str, Any]]) -> list[Answer]:
    """Send all requests from N clients, each of which waits for its answer."""
    remaining, answers = iter(requests), []

    async def client() -> None:
        for body in remaining:
            answers.append(await ask(arguments.base_url, body, arguments.api_key))

    await asyncio.gather(*(client() for _ in range(arguments.clients)))
    return answers


async def open_loop(arguments: argparse.Namespace, requests: list[dict[str, Any]]) -> list[Answer]:
    """Send requests at random times, `rate` a second on average."""
    chance, tasks = random.Random(arguments.seed), []
    due = time.perf_counter()
    for body in requests:
        due += chance.expovariate(arguments.rate)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(ask(arguments.base_url, body, arguments.api_key)))
    return list(await asyncio.gather(*tasks))


def spread(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    return {f"p{one}": round(float(np.percentile(seconds, one)) * 1000, 2) for one in PERCENTILES} if seconds else {}


def summary(answers: list[Answer], seconds: float) -> dict[str, Any]:
    """Return the figures of a run."""
    good = [one for one in answers if one.status == 200 and not one.error]
    refused = sum(one.status == 429 for one in answers)
    between = [later - earlier for one in good for earlier, later in zip(one.pieces, one.pieces[1:], strict=False)]
    result: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "answered": len(good),
        "refused": refused,
        "failed": len(answers) - len(good) - refused,
        "requests_per_second": round(len(good) / seconds, 3),
        "tokens_per_second": round(sum(one.tokens for one in good) / seconds, 2),
        "tokens_per_answer": round(sum(one.tokens for one in good) / max(len(good), 1), 1),
        "time_to_first_token_ms": spread([one.pieces[0] - one.sent for one in good if one.pieces]),
        "time_between_tokens_ms": spread(between),
        "request_ms": spread([one.ended - one.sent for one in good]),
    }
    timed = [one for one in good if {"queue_ms", "prompt_ms", "predicted_ms"} <= one.timings.keys()]
    if timed:
        engine = sum(one.timings[name] for one in timed for name in ("queue_ms", "prompt_ms", "predicted_ms")) / 1000
        total = sum(one.ended - one.sent for one in timed)
        result["outside_engine"] = round(1 - engine / total, 4)
    errors = sorted({one.error for one in answers if one.error and one.status != 429})
    return result | ({"errors": errors[:3]} if errors else {})


async def cpu_seconds(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the server's CPU time since its start: that of the process, and of its parts; empty if it does not say."""
    target = urlsplit(arguments.base_url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port or 80)
    key = [f"Authorization: Bearer {arguments.api_key}"] if arguments.api_key else []
    head = ["GET /metrics HTTP/1.1", f"Host: {target.hostname}:{target.port or 80}", "Connection: close", *key, "", ""]
    writer.write("\r\n".join(head).encode())
    text = (await reader.read()).decode()
    writer.close()
    parts = {
        found["thread"]: float(found["seconds"])
        for found in re.finditer(
            r'^share4v:thread_cpu_seconds_total{.*thread="(?P<thread>\w+)".*} (?P<seconds>\S+)', text, re.M
        )
    }
    process = re.search(r"^process_cpu_seconds_total (\S+)", text, re.M)
    return {"process": float(process[1]), **parts} if parts and process else {}


def cpu_share(before: dict[str, float], after: dict[str, float], answered: int) -> dict[str, Any]:
    """Return the CPU time of a run by what it was spent on, in ms per answer, and the share outside the model."""
    if not before or not answered:
        return {}
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    outside = sum(seconds for name, seconds in spent.items() if name not in ("process", "model"))
    milliseconds = {name: round(1000 * seconds / answered, 3) for name, seconds in spent.items()}
    return {"cpu_ms_per_answer": milliseconds, "outside_model_cpu": round(outside / spent["process"], 4)}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Warm the server up, run the load, and return its figures."""
    for body in bodies(arguments, arguments.warm_up, 10**6):
        await ask(arguments.base_url, body, arguments.api_key)
    requests = bodies(arguments, arguments.requests, 0)
    before = await cpu_seconds(arguments)
    start = time.perf_counter()
    answers = await (open_loop if arguments.rate else closed_loop)(arguments, requests)
    result = summary(answers, time.perf_counter() - start)
    return result | cpu_share(before, await cpu_seconds(arguments), result["answered"])


def main() -> None:
    """Parse the command line, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:8000, without /v1")
    parser.add_argument("--model", help="name for the requests; servers with one model need none")
    parser.add_argument("--api-key")
    parser.add_argument("--clients", type=int, default=8, help="of the closed loop")
    parser.add_argument("--rate", type=float, help="requests per second of the open loop")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=2, help="requests before the measurement")
    parser.add_argument("--prompt", default="Describe this image")
    parser.add_argument("--images", type=int, default=10**6, help="number of different images; 0 sends none")
    parser.add_argument("--side", type=int, default=336, help="width and height of an image")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--ignore-eos", action="store_true", help="all answers have --max-tokens tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the arrival times")
    arguments = parser.parse_args()
    machine, result = describe(), asyncio.run(measure(arguments))
    mode = {"rate": arguments.rate} if arguments.rate else {"clients": arguments.clients}
    print(json.dumps({**mode, **result, "machine": machine}))


if __name__ == "__main__":
    main()
