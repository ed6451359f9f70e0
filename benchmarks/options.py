"""What the benchmarks of labels are told, and how they keep what they measured."""

import argparse
import json
from pathlib import Path
from typing import Any


def engine_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of an engine, the network calls a pair, and a file for the results."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine")
    parser.add_argument("--steps", type=int, default=100, help="network calls a pair")
    parser.add_argument("--json", type=Path)
    return parser


def keep(result: dict[str, Any], path: Path | None) -> None:
    """Write results as JSON, if they are to be kept."""
    if path:
        path.write_text(json.dumps(result, indent=2) + "\n")
