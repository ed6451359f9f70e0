"""Higher-order solvers of the reverse process: an estimate of ``x0`` that is drawn on from those before it.

DPM-Solver++ (Lu et al., arXiv:2211.01095) in data prediction, which is the form that AIF can edit: the multistep
solver of second order for the probability flow (2M, Algorithm 2) and for the reverse SDE (SDE-DPM-Solver++(2M), their
appendix). With ``lambda = log(sqrt(abar) / sqrt(1 - abar))`` rising by ``h`` in a transition, and by ``h_before`` in
the one before it::

    D  = x0 + h / (2 h_before) (x0 - x0_before)
    2M:      x' = sqrt(1 - abar') / sqrt(1 - abar) x + sqrt(abar') (1 - exp(-h)) D
    2M SDE:  x' = posterior_xt x + posterior_x0 D + sigma z          (Eq. 2, which is their first order)

UniPC (Zhao et al., arXiv:2302.04867) of order 2 in data prediction, its predictor with ``B(h) = exp(h) - 1``, is 2M
from a state that was corrected. The corrector makes the last transition again with the estimate at its end, so that
what it adds to the state is a sum of estimates too, and moves into ``D``: no corrected state is kept. So a solver is
three numbers of a transition and two weights of past estimates::

    D  = x0 + near (x0 - x0_before) + far (x0_before - x0_before_that)
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


class Drawn(NamedTuple):
    """How far an estimate is drawn on along its last difference, and along the one before that."""

    near: float = 0.0
    far: float = 0.0


def weights(solver: SolverName, schedule: Schedule, k: int) -> Weights:
    """Those of transition ``k``; for ``ancestral`` and ``dpmpp-2m-sde`` the posterior's."""
    if solver in ("ancestral", "dpmpp-2m-sde") or k == 0:
        deviation = float(np.sqrt(max(schedule.posterior_variance[k], 1e-20))) if k else 0.0
        return Weights(float(schedule.posterior_x0[k]), float(schedule.posterior_xt[k]), deviation)
    abar, before = schedule.abar[k], schedule.abar_before[k]
    ratio = np.sqrt((1 - before) / (1 - abar))
    # exp(-h) is the ratio of the deviations over that of the signals.
    return Weights(float(np.sqrt(before) - ratio * np.sqrt(abar)), float(ratio), 0.0)


def extrapolations(solver: SolverName, schedule: Schedule, only: NDArray[np.bool_]) -> tuple[Drawn, ...]:
    """The weights of past estimates in every transition, the last one of the loop first; 0 where of first order.

    That are the first one, the first of a branch, whose adapter estimates another picture than the one before, and
    the last, which ends where ``lambda`` has no value. ``only`` bool ``[K]`` is which are in the only branch.
    """
    count = len(schedule)
    drawn = [Drawn()] * count
    if solver == "ancestral":
        return tuple(drawn)
    logsnr = 0.5 * np.log(schedule.abar / (1 - schedule.abar))
    # h[k] of transition k, which ends at level k - 1; that of transition 0 has no end.
    h = np.concatenate([[np.inf], -np.diff(logsnr)])
    follows = np.append(only[:-1] == only[1:], False)
    for k in range(1, count - 1):
        if not follows[k]:
            continue
        near, far = h[k] / (2 * h[k + 1]), 0.0
        if solver == "unipc":
            h_before = h[k + 2] if follows[k + 1] else None
            corrected = _corrected(h[k + 1], h_before)
            share = np.expm1(-h[k + 1]) / -np.expm1(h[k])
            near, far = near + share * corrected.near, share * corrected.far
        drawn[k] = Drawn(float(near), float(far))
    return tuple(drawn)


def _corrected(h: float, h_before: float | None) -> Drawn:
    """What UniC adds to the ``D`` of the transition by ``h`` that UniP made, by the differences of estimates.

    That is the solution of the paper's linear system less UniP's own weights. Without ``h_before`` that transition
    was of first order, and UniC is too.
    """
    if h_before is None:
        return Drawn(near=0.5)
    phi = np.expm1(-h)
    first = phi / -h - 1
    second = first / -h - 0.5
    ratio = -h_before / h
    system = np.array([[1.0, 1.0], [ratio, 1.0]])
    past, present = np.linalg.solve(system, np.array([first, 2 * second]) / phi)
    return Drawn(near=float(present), far=float((0.5 - past) / ratio))


class History:
    """The last estimates of ``x0``, inside the mask, where the state is the method's own at every step."""

    def __init__(self, mask: NDArray[Any]) -> None:
        self._mask = mask
        self._before: NDArray[Any] | None = None
        self._change: NDArray[Any] | None = None

    def drawn_on(
        self, x: NDArray[Float], eps: NDArray[Float], signal: float, noise: float, drawn: Drawn
    ) -> NDArray[Float]:
        """The noise estimate whose ``x0`` is ``D``.

        Args:
            x: the state, ``[B, C, h, w]``.
            eps: its estimate.
            signal: weight of ``x`` in ``x0``, `StepCoefficients.sqrt_recip_abar`.
            noise: weight of ``eps`` in it, `StepCoefficients.sqrt_recipm1_abar`.
            drawn: the weights of the past estimates; 0 is ``eps`` itself.
        """
        kind = x.dtype.type
        with np.errstate(invalid="ignore", over="ignore"):
            x0 = kind(signal) * x - kind(noise) * eps
            change = None if self._before is None else x0 - self._before
            change_before, self._before, self._change = self._change, x0, change
            if not drawn.near:
                return eps
            assert change is not None
            added = kind(drawn.near / noise) * change
            if drawn.far:
                assert change_before is not None
                added += kind(drawn.far / noise) * change_before
            return np.asarray(eps - self._mask * added)
