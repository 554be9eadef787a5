"""What bench/serving.py runs in an image: two servers of one model, started and loaded by turns. Standard library only.

    python serving_program.py PLAN RESULTS

PLAN: `{"sides": {name: {"command": […], "environment": {…}, "kind": "triton" | "openai", "port": 8000}}, "order": […],
"model": "…", "streams": 16, "requests": 48, "tokens": 64, "prompts": […], "ready": 600}`. RESULTS: a JSON line a turn:
`{"side", "ready", "seconds", "tokens", "tokens_per_second", "first": [seconds …]}`. The client is the same for both:
one asyncio loop, a connection per request, times taken when bytes arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any


def request_of(plan: dict[str, Any], kind: str, number: int) -> tuple[str, bytes]:
    prompt = plan["prompts"][number % len(plan["prompts"])]
    if kind == "triton":
        parameters = {"max_tokens": plan["tokens"], "temperature": 0.0, "ignore_eos": True}
        return f"/v2/models/{plan['model']}/generate_stream", json.dumps(
            {"text_input": prompt, "stream": True, "exclude_input_in_output": True,
             "sampling_parameters": json.dumps(parameters)}).encode()
    return "/v1/completions", json.dumps(
        {"model": plan["model"], "prompt": prompt, "stream": True, "max_tokens": plan["tokens"], "temperature": 0.0,
         "ignore_eos": True}).encode()


def ready(side: dict[str, Any], model: str) -> bool:
    path = f"/v2/models/{model}/ready" if side["kind"] == "triton" else "/v1/models"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{side['port']}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


async def ask(plan: dict[str, Any], side: dict[str, Any], number: int) -> float:
    """Seconds to the first event of one answer; the answer is read to its end."""
    path, body = request_of(plan, side["kind"], number)
    begun, first, events = time.perf_counter(), 0.0, 0
    reader, writer = await asyncio.open_connection("127.0.0.1", side["port"])
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{path}: {status.decode()} {(await reader.read())[:2000].decode('utf-8', 'replace')}")
    while line := await reader.readline():
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - begun
            events += 1
            if b'"error"' in line:
                raise SystemExit(line.decode())
    writer.close()
    if events < min(2, plan["tokens"]):
        raise SystemExit(f"{path}: {events} events, so it did not stream")
    return first


async def load(plan: dict[str, Any], side: dict[str, Any], requests: int) -> list[float]:
    """All requests, `streams` at a time."""
    numbers = iter(range(requests))
    found: list[float] = []

    async def stream() -> None:
        for number in numbers:
            found.append(await ask(plan, side, number))

    await asyncio.gather(*(stream() for _ in range(plan["streams"])))
    return found


def turn(plan: dict[str, Any], name: str) -> dict[str, Any]:
    side = plan["sides"][name]
    begun = time.perf_counter()
    server = subprocess.Popen(side["command"], env={**os.environ, **side["environment"]}, start_new_session=True)
    try:
        while not ready(side, plan["model"]):
            if server.poll() is not None or time.perf_counter() - begun > plan["ready"]:
                raise SystemExit(f"{name}: not ready")
            time.sleep(0.1)
        ready_after = time.perf_counter() - begun
        asyncio.run(load(plan, side, plan["streams"]))  # warm
        begun = time.perf_counter()
        first = asyncio.run(load(plan, side, plan["requests"]))
        seconds = time.perf_counter() - begun
        tokens = plan["requests"] * plan["tokens"]
        return {"side": name, "ready": ready_after, "seconds": seconds, "tokens": tokens,
                "tokens_per_second": tokens / seconds, "first": first}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        time.sleep(2)


def main() -> None:
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    with open(sys.argv[2], "w") as results:
        for name in plan["order"]:
            results.write(json.dumps(turn(plan, name)) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
