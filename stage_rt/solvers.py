"""Higher-order solvers of the reverse process: an estimate of ``x0`` that is drawn on from the one before it.

DPM-Solver++ (Lu et al., arXiv:2211.01095) in data prediction, which is the form that AIF can edit: the multistep
solver of second order for the probability flow (2M, Algorithm 2) and for the reverse SDE (SDE-DPM-Solver++(2M), their
appendix). With ``lambda = log(sqrt(abar) / sqrt(1 - abar))`` rising by ``h`` in a transition, and by ``h_before`` in
the one before it::

    D  = x0 + h / (2 h_before) (x0 - x0_before)
    2M:      x' = sqrt(1 - abar') / sqrt(1 - abar) x + sqrt(abar') (1 - exp(-h)) D
    2M SDE:  x' = posterior_xt x + posterior_x0 D + sigma z          (Eq. 2, which is their first order)

so that a solver is three numbers of a transition and a weight of the last estimate.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stage_rt.names import SolverName
from stage_rt.schedule import Schedule

Float = TypeVar("Float", bound=np.floating[Any])


class Weights(NamedTuple):
    """Of ``x0`` and ``x_t`` in the next state, and of its noise."""

    x0: float
    xt: float
    sigma: float


def weights(solver: SolverName, schedule: Schedule, k: int) -> Weights:
    """Those of transition ``k``; for ``ancestral`` and ``dpmpp-2m-sde`` the posterior's."""
    if solver != "dpmpp-2m" or k == 0:
        deviation = float(np.sqrt(max(schedule.posterior_variance[k], 1e-20))) if k else 0.0
        return Weights(float(schedule.posterior_x0[k]), float(schedule.posterior_xt[k]), deviation)
    abar, before = schedule.abar[k], schedule.abar_before[k]
    ratio = np.sqrt((1 - before) / (1 - abar))
    # exp(-h) is the ratio of the deviations over that of the signals.
    return Weights(float(np.sqrt(before) - ratio * np.sqrt(abar)), float(ratio), 0.0)


def extrapolations(solver: SolverName, schedule: Schedule, only: NDArray[np.bool_]) -> tuple[float, ...]:
    """``h / (2 h_before)`` of every transition, the last one of the loop first; 0 where it is of first order.

    That are the first one, the first of a branch, whose adapter estimates another picture than the one before, and
    the last, which ends where ``lambda`` has no value. ``only`` bool ``[K]`` is which are in the only branch.
    """
    count = len(schedule)
    drawn = [0.0] * count
    if solver == "ancestral":
        return tuple(drawn)
    logsnr = 0.5 * np.log(schedule.abar / (1 - schedule.abar))
    for k in range(1, count - 1):
        if only[k] == only[k + 1]:
            drawn[k] = float((logsnr[k - 1] - logsnr[k]) / (2 * (logsnr[k] - logsnr[k + 1])))
    return tuple(drawn)


class History:
    """The last estimate of ``x0``, inside the mask, where the state is the method's own at every step."""

    def __init__(self, mask: NDArray[Any]) -> None:
        self._mask = mask
        self._before: NDArray[Any] | None = None

    def drawn_on(
        self, x: NDArray[Float], eps: NDArray[Float], signal: float, noise: float, weight: float
    ) -> NDArray[Float]:
        """The noise estimate whose ``x0`` is ``D``.

        Args:
            x: the state, ``[B, C, h, w]``.
            eps: its estimate.
            signal: weight of ``x`` in ``x0``, `StepCoefficients.sqrt_recip_abar`.
            noise: weight of ``eps`` in it, `StepCoefficients.sqrt_recipm1_abar`.
            weight: of the difference to the last estimate; 0 is ``eps`` itself.
        """
        kind = x.dtype.type
        x0 = kind(signal) * x - kind(noise) * eps
        before, self._before = self._before, x0
        if not weight:
            return eps
        assert before is not None
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(eps - self._mask * kind(weight / noise) * (x0 - before))
