"""Malformed requests until there are enough: ``python benchmarks/serve_malformed.py SCHEMATHESIS -o RESULTS.json``.

SCHEMATHESIS is the command of that name, from an environment of its own. It makes requests of the OpenAPI file, with
another seed each round, until the server's log has ``--count`` of them; the networks are the tests' and take no time.
Exits with 1 if one of them was answered with 500 or the server told of a fault.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from closed_engine import Site, furnish

LINE = re.compile(r"INFO \S+ ([A-Z]+) (\S*) (\d{3}) [\d.]+ s")


def answered(site: Site) -> collections.Counter:
    """How many requests were answered with which status, by the server's log."""
    return collections.Counter(found[3] for found in LINE.finditer(site.log()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("schemathesis", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    began, rounds = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as here:
        site = Site(furnish(Path(here)))
        try:
            while sum(answered(site).values()) < given.count:
                rounds += 1
                command = [
                    given.schemathesis.absolute(),
                    "run",
                    f"{site.url}/openapi.json",
                    "--seed",
                    str(rounds),
                ]
                options = "--checks not_a_server_error --phases coverage,fuzzing --max-examples 200"
                command += [
                    *options.split(),
                    "--continue-on-failure",
                    "--no-color",
                    "--request-timeout",
                    "60",
                ]
                told = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
                print(f"round {rounds}: {dict(answered(site))}", file=sys.stderr)
                if told.returncode:
                    print(told.stdout[-4000:] + told.stderr[-4000:], file=sys.stderr)
            answers, log = answered(site), site.log()
        finally:
            site.close()
    faults = [line for line in log.splitlines() if " ERROR " in line or "Traceback" in line]
    result = {
        "requests": sum(answers.values()),
        "rounds": rounds,
        "seconds": round(time.monotonic() - began),
        "answers": dict(sorted(answers.items())),
        "faults": faults[:20],
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(answers["500"] or faults))


if __name__ == "__main__":
    main()
