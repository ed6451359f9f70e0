"""Lets a venv see the packages of the Python that runs this: ``python outside.py VENV``, for `run.sh`.

A venv sees those of the Python it was made from only where that is none itself, and never those of the user.
"""

import site
import sys
import sysconfig
from pathlib import Path


def main() -> None:
    base = sys.argv[1]
    inside = Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))
    own = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    outside = [*own, *site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (inside / "outside.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(outside)))


if __name__ == "__main__":
    main()
