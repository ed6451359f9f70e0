"""Whether a server's memory is flat: ``python benchmarks/serve_memory.py -o RESULTS.json [--count 10000]``.

Pairs of 160x120 px are asked for by six clients, of ten steps each, over the tests' networks, which take no time.
Resident memory is taken at every twentieth of them; what is compared is the last tenth with the second.
"""

import argparse
import asyncio
import base64
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
from many_pairs import resident

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from closed_engine import Site, furnish

CLIENTS, PARTS = 6, 20


async def ask(site: Site, count: int) -> dict:
    mask = base64.b64encode((site.here / "masks/crack/002_mask.png").read_bytes()).decode()
    order = {"prompt": "tile+crack", "photograph": "001.png", "mask": mask, "steps": 10, "retries": 0}
    seeds, done, memory, began = itertools.count(), 0, [], time.monotonic()

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal done
        while (seed := next(seeds)) < count:
            answer = await http.post("/v1/pairs", json=order | {"seed": seed})
            assert answer.status_code == 200, answer.text
            assert answer.json()["state"] == "done", answer.text
            done += 1
            if done * PARTS % count < PARTS:
                memory.append(round(resident(site.process.pid), 1))
                print(f"{done} pairs, {memory[-1]} MiB, {time.monotonic() - began:.0f} s", file=sys.stderr)

    async with httpx.AsyncClient(base_url=site.url, timeout=None, trust_env=False) as http:
        while (await http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.2)
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    second, last = statistics.mean(memory[2:4]), statistics.mean(memory[-2:])
    return {
        "pairs": done,
        "seconds": round(time.monotonic() - began),
        "mib": memory,
        "last_tenth_to_second": round(last / second, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as here:
        site = Site(furnish(Path(here)))
        try:
            found = asyncio.run(ask(site, given.count))
        finally:
            site.close()
    given.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
