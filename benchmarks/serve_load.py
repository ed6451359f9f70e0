"""A server under load: open-loop arrivals at shares of its capacity, against one request at a time.

    python benchmarks/serve_load.py ENGINE --photograph FILE --mask FILE --prompt NAME -o RESULTS.json

Requests come by a Poisson process, whether or not those before them are answered. Capacity is what a closed loop of
as many clients as the lane has slots, and one more, gets through. The first of them asks for the pairs that were
painted one at a time: ``equal_bytes`` is whether they are the same files.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from stage_rt.machine import cores

SHARES = (0.5, 0.8, 1.2)
EACH = 8
"""Pairs that a client of a closed loop asks for."""


class Load:
    def __init__(self, http: httpx.AsyncClient, order: dict) -> None:
        self._http, self._order = http, order
        self.seconds: list[float] = []
        self.images: dict[int, str] = {}
        self.refused = self.failed = 0

    async def ask(self, seed: int) -> None:
        began = time.monotonic()
        answer = await self._http.post("/v1/pairs", json=self._order | {"seed": seed})
        if answer.status_code == 429:
            self.refused += 1
        elif answer.status_code == 200 and answer.json()["state"] == "done":
            self.seconds.append(time.monotonic() - began)
            picture = await self._http.get(answer.json()["image"])
            self.images[seed] = hashlib.sha256(picture.content).hexdigest()
        else:
            self.failed += 1

    def told(self, sent: int, took: float) -> dict:
        times = sorted(self.seconds)
        at = {
            name: round(times[int(share * (len(times) - 1))], 2)
            for name, share in (("p50", 0.5), ("p95", 0.95))
        }
        return {
            "sent": sent,
            "painted": len(times),
            "refused": self.refused,
            "failed": self.failed,
            "lost": sent - len(times) - self.refused - self.failed,
            "seconds": round(took, 1),
            "pairs_a_second": round(len(times) / took, 3),
            "latency": at,
        }


async def closed(
    http: httpx.AsyncClient, order: dict, clients: int, each: int
) -> tuple[dict, dict[int, str]]:
    load, began = Load(http, order), time.monotonic()

    async def client(number: int) -> None:
        for turn in range(each):
            await load.ask(1000 * number + turn)

    await asyncio.gather(*map(client, range(clients)))
    return load.told(clients * each, time.monotonic() - began), load.images


async def opened(http: httpx.AsyncClient, order: dict, rate: float, seconds: float) -> dict:
    load, chance, began, asked = Load(http, order), random.Random(0), time.monotonic(), []
    while time.monotonic() - began < seconds:
        asked.append(asyncio.create_task(load.ask(100_000 + len(asked))))
        await asyncio.sleep(chance.expovariate(rate))
    await asyncio.gather(*asked)
    return {"rate": round(rate, 3), "asked_for": seconds, **load.told(len(asked), time.monotonic() - began)}


async def measure(url: str, order: dict, seconds: float) -> dict:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as http:
        while (await http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.2)
        (engine,) = (await http.get("/v1/engines")).json()
        one, alone = await closed(http, order, 1, EACH)
        full, beside = await closed(http, order, engine["slots"] + 1, EACH)
        equal = all(beside.get(seed) == digest for seed, digest in alone.items())
        print(f"one at a time {one}\ntogether {full}\nequal bytes {equal}", file=sys.stderr)
        levels = {}
        for share in SHARES:
            levels[f"{share:.0%}"] = await opened(http, order, share * full["pairs_a_second"], seconds)
            print(share, levels[f"{share:.0%}"], file=sys.stderr)
        gain = full["pairs_a_second"] / one["pairs_a_second"]
        return {
            "slots": engine["slots"],
            "one_at_a_time": one,
            "together": full,
            "gain": round(gain, 2),
            "equal_bytes": equal,
            "open": levels,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", type=Path)
    for name in ("--photograph", "--mask"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300, help="of each share of the capacity")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    text = {
        name: base64.b64encode(getattr(given, part).read_bytes()).decode()
        for name, part in (("image", "photograph"), ("mask", "mask"))
    }
    order = text | {"prompt": given.prompt, "steps": given.steps, "retries": 0}
    with tempfile.TemporaryDirectory() as data:
        command = [
            Path(sys.executable).with_name("stage-rt"),
            "serve",
            given.engine,
            "--data",
            data,
            "--port",
            "0",
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            found = asyncio.run(measure(server.stdout.readline().strip(), order, given.seconds))
            status = Path(f"/proc/{server.pid}/status").read_text()
        finally:
            server.terminate()
            server.wait()
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": cores(),
        "load": os.getloadavg()[0],
    }
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024
    result = {"machine": machine, "steps": given.steps, "peak_mib": peak, **found}
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
