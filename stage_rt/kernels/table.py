"""The table the kernels read: `stage_rt.recipe.StepCoefficients` as C lays it out, a row a transition.

The fields are those of the named tuple, in its order. ``step.h`` says the same in C, and the compiled library is
asked for its layout when it is opened.
"""

from collections.abc import Sequence
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from stage_rt.recipe import StepCoefficients

_TYPES: dict[type, type] = {float: np.float32, bool: np.uint32, int: np.uint32}

ROW = np.dtype([(name, _TYPES[kind]) for name, kind in get_type_hints(StepCoefficients).items()])
"""`stage::Coefficients` of step.h."""

LAYOUT = " ".join(
    f"{name}:{kind.str[1:]}@{offset}" for name, (kind, offset, *_) in (ROW.fields or {}).items()
)
"""The same as the library tells it: name, kind, size and offset in bytes of every field."""


def rows(coefficients: Sequence[StepCoefficients]) -> NDArray[Any]:
    """The rows of ``coefficients``, `ROW` ``[len(coefficients)]``."""
    return np.array([tuple(each) for each in coefficients], dtype=ROW)
