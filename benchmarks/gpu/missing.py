"""Which wheels need not be carried: ``python missing.py WHEELS THERE`` prints the path of each, a line.

THERE is what ``pip list --format=freeze`` printed on the other machine. A wheel is needed when stage-rt, PyCUDA or
needs.txt ask for it, themselves or through another that is needed, and what is there is no version they can do with.
"""

import argparse
import zipfile
from email.parser import Parser
from pathlib import Path

# Wherever there is pip there is this, and nothing else would need it.
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

HERE = Path(__file__).parent
LISTS = (HERE / "needs.txt", HERE.parents[1] / "tests/support/softcuda/requirements.txt")


def listed(path: Path) -> list[str]:
    """The requirements of a file."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def requirements(wheel: Path) -> list[str]:
    """What a wheel asks for on this Python, without extras."""
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        found = Parser().parsestr(packed.read(name).decode()).get_all("Requires-Dist") or []
    return [
        text
        for text in found
        if (marker := Requirement(text).marker) is None or marker.evaluate({"extra": ""})
    ]


def missing(wanted: list[str], wheels: dict[str, Path], there: dict[str, str]) -> set[Path]:
    """The wheels without which ``wanted`` cannot be installed beside what is ``there``, by name and version."""
    needed: set[Path] = set()
    wanted = list(wanted)
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name in there and requirement.specifier.contains(there[name], prereleases=True):
            continue
        if wheels[name] not in needed:
            needed.add(wheels[name])
            wanted += requirements(wheels[name])
    return needed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", type=Path)
    parser.add_argument("there", type=Path)
    options = parser.parse_args()
    wheels = {str(parse_wheel_filename(path.name)[0]): path for path in options.wheels.glob("*.whl")}
    pairs = [line.split("==", 1) for line in listed(options.there) if "==" in line]
    there = {canonicalize_name(name): version for name, version in pairs}
    wanted = ["stage-rt", *(line for path in LISTS for line in listed(path))]
    for path in sorted(set(wheels.values()) - missing(wanted, wheels, there)):
        print(path)


if __name__ == "__main__":
    main()
