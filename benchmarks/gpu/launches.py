"""What a network that AOTInductor compiled launches in one call: ``python launches.py NETWORK.pt2``.

Read from the code that PyTorch generated, which lies in the package; nothing runs. Kernels of PyTorch's own have the
operators that went into them in their names; the others are calls of libraries, which may launch several.
"""

import argparse
import re
import zipfile
from collections import Counter
from pathlib import Path

_BODY = re.compile(r"AOTInductorModel::run_impl\((.*?)\} // AOTInductorModel::run_impl", re.DOTALL)
_CALL = re.compile(r"\b(?:call_)?((?:cpp|triton)_\w+|aoti_torch_(?:cpu|cuda)_\w+)\(")

PATTERNS = {
    "GroupNorm + SiLU": ("native_group_norm", "silu"),
    "GroupNorm": ("native_group_norm",),
    "LayerNorm": ("native_layer_norm",),
    "GELU + gate of GEGLU": ("gelu", "mul"),
}
"""Operators that stand together in the name of a kernel that does all of them; the first that fits counts."""


def launches(package: Path) -> Counter[str]:
    """How often a call launches what, by name.

    Raises:
        ValueError: the package holds no code that reads as expected.
    """
    with zipfile.ZipFile(package) as packed:
        texts = [packed.read(name).decode() for name in packed.namelist() if name.endswith("wrapper.cpp")]
    bodies = [body[1] for text in texts for body in _BODY.finditer(text)]
    found = Counter(_CALL.findall("".join(bodies)))
    if not found:
        raise ValueError(f"`{package}` holds no code of PyTorch's that launches anything")
    return found


def summary(found: Counter[str]) -> dict[str, int]:
    """How many launches there are, of libraries, and kernels of each of `PATTERNS`."""
    rows = Counter({"all": found.total(), "libraries": 0} | dict.fromkeys(PATTERNS, 0))
    for name, times in found.items():
        if name.startswith("aoti_torch"):
            rows["libraries"] += times
            continue
        fits = (
            pattern
            for pattern, operators in PATTERNS.items()
            if all(f"_{each}" in name for each in operators)
        )
        if pattern := next(fits, None):
            rows[pattern] += times
    return dict(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path)
    found = launches(parser.parse_args().package)
    for name, times in found.most_common():
        print(f"{times:4} {name}")
    print("  ".join(f"{name}: {times}" for name, times in summary(found).items()))


if __name__ == "__main__":
    main()
