"""Load on a server with OpenAI's API: requests and tokens per second, time to first token, time between tokens.

    share4v serve --model sharegpt4v-tiny --port 8000 > /dev/null &
    python benchmarks/serve.py --base-url http://127.0.0.1:8000 --clients 16 --requests 200
    python benchmarks/serve.py --base-url http://127.0.0.1:8000 --rate 4 --requests 200

Closed loop: each of N clients sends its next request when its last one is answered. Open loop (`--rate`): requests
arrive at random times (Poisson), however many are running; what the server refuses with 429 is counted. Every request
has an image of its own unless `--images` is smaller, so that a cache of features does not help. The last line is one
JSON object; times are in milliseconds. `outside_engine` is the share of a request's time in which it was neither in the
engine's queue nor in its batch, by the server's own `timings`, which only `share4v serve` sends.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import time
from typing import Any

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


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Warm the server up, run the load, and return its figures."""
    for body in bodies(arguments, arguments.warm_up, 10**6):
        await ask(arguments.base_url, body, arguments.api_key)
    requests = bodies(arguments, arguments.requests, 0)
    start = time.perf_counter()
    answers = await (open_loop if arguments.rate else closed_loop)(arguments, requests)
    return summary(answers, time.perf_counter() - start)


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
