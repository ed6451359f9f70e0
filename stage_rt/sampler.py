"""STAGE's sampling loop (Algorithm 1) over any denoiser and any noise source."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stage_rt import kernels
from stage_rt.errors import BackendError, InputError
from stage_rt.noise import NoiseSource, PhiloxNoise
from stage_rt.recipe import Branch, Recipe, StepCoefficients
from stage_rt.solvers import History

Float = TypeVar("Float", bound=np.floating[Any])

Denoiser = Callable[[NDArray[Any], int, NDArray[Any], Branch], NDArray[Any]]
"""``denoise(x, i, mask, branch) -> eps``: UNet and adapter; ``mask`` is what the adapter is handed."""


Callback = Callable[[int, NDArray[Any]], None]


def sample(
    denoise: Denoiser,
    clean: NDArray[Float],
    mask: NDArray[Float],
    *,
    recipe: Recipe,
    noise: NoiseSource,
    callback: Callback | None = None,
    label: NDArray[Float] | None = None,
) -> NDArray[Float]:
    """Paint a defect under ``mask`` into the latent ``clean`` (Algorithm 1, as the authors' code runs it).

    The authors carry an image state and an auxiliary state for the only branch. They agree inside the mask and
    each branch reads only its own, so one state is carried here, blended at every step for the branch that
    runs next.

    Args:
        denoise: called as ``denoise(x, i, mask, branch)`` for every level ``i`` of the recipe's schedule, from
            ``steps - 1`` down to 0; returns the guided noise estimate, ``[B, C, h, w]``. ``mask`` is the soft EMA
            mask for the aware branch, the binary mask for the only branch, ``[B, 1, h, w]``.
        clean: latent of the good image, ``[B, C, h, w]``, float32. In float64 the loop runs in float64, which
            serves to prove equalities.
        mask: latent mask, ``[B, 1, h, w]``, 0 or 1, in the dtype of ``clean``.
        recipe: schedule and branch plan.
        noise: source of every random draw, addressed by ``i``.
        callback: called as ``callback(i, state)`` after every step.
        label: the part of ``mask`` that the denoiser is told of in its place; the method has no such part. Where a
            defect fades out beyond its label, more is painted than the label.

    Returns:
        The painted latent ``[B, C, h, w]``. A sample whose denoiser failed is non-finite there; the others are
        not affected. If no mask has a cell set, the denoiser is not called: `untouched`.

    Raises:
        InputError: shapes, dtypes or mask values are wrong.
        BackendError: the denoiser returned another shape.
    """
    check_inputs(clean, mask, label)
    if not mask.any():
        return untouched(clean, mask, recipe=recipe, noise=noise)
    step, told = _step(noise, clean.dtype), mask if label is None else label
    x = noise.initial(clean.shape).astype(clean.dtype, copy=False)
    history = None if recipe.solver == "ancestral" else History(mask)
    for c, drawn in zip(reversed(recipe.coefficients), reversed(recipe.extrapolations), strict=True):
        soft = told + told.dtype.type(c.mix) * (1 - told)
        eps = denoise(x, c.timestep, soft, recipe.branch(c.timestep))
        if eps.shape != x.shape:
            raise BackendError(
                f"the denoiser returned shape {eps.shape} at step {c.timestep}, expected {x.shape}"
            )
        if history is not None:
            eps = history.drawn_on(x, eps, c.sqrt_recip_abar, c.sqrt_recipm1_abar, drawn)
        x = step(x, eps, clean, mask, c)
        if callback is not None:
            callback(c.timestep, x)
    return x


def untouched(
    clean: NDArray[Float], mask: NDArray[Float], *, recipe: Recipe, noise: NoiseSource
) -> NDArray[Float]:
    """What `sample` makes of samples whose masks are empty: whatever the networks say would be blended away.

    Arguments and result as `sample`.
    """
    nothing = np.zeros_like(clean)
    return _step(noise, clean.dtype)(nothing, nothing, clean, mask, recipe.coefficients[0])


def _step(noise: NoiseSource, dtype: np.dtype[Any]) -> Callable[..., NDArray[Any]]:
    """One transition, ``(x, eps, clean, mask, c) -> x``: the compiled kernel where it can draw the noise itself."""
    if isinstance(noise, PhiloxNoise) and dtype == np.float32:

        def fused(
            x: NDArray[Any], eps: NDArray[Any], clean: NDArray[Any], mask: NDArray[Any], c: StepCoefficients
        ) -> NDArray[Any]:
            estimate = np.ascontiguousarray(eps, dtype=np.float32)
            return kernels.fused_step(x, estimate, clean, mask, c, noise.seeds, noise.samples)[0]

        return fused

    def drawn(
        x: NDArray[Any], eps: NDArray[Any], clean: NDArray[Any], mask: NDArray[Any], c: StepCoefficients
    ) -> NDArray[Any]:
        i = c.timestep
        background = noise.mask(i, mask.shape) if c.shared_noise else noise.background(i, x.shape)
        return kernels.step(x, eps, clean, mask, c, background, noise.posterior(i, x.shape))

    return drawn


def check_inputs(clean: NDArray[Any], mask: NDArray[Any], label: NDArray[Any] | None = None) -> None:
    """Raise `InputError` unless ``clean``, ``mask`` and ``label`` are as `sample` wants them."""
    if clean.ndim != 4:
        raise InputError(f"`clean` must have shape [B, C, h, w], got {clean.shape}")
    if mask.shape != (clean.shape[0], 1, *clean.shape[2:]):
        raise InputError(f"`mask` must have shape {(clean.shape[0], 1, *clean.shape[2:])}, got {mask.shape}")
    if clean.dtype not in (np.float32, np.float64) or mask.dtype != clean.dtype:
        raise InputError(f"`clean` and `mask` must both be float32, got {clean.dtype} and {mask.dtype}")
    if not np.isin(mask, (0, 1)).all():
        raise InputError("`mask` must hold only 0 and 1")
    if not np.isfinite(clean).all():
        raise InputError("`clean` must be finite")
    if label is not None and (
        label.shape != mask.shape or label.dtype != mask.dtype or ((label != 0) & (label != mask)).any()
    ):
        raise InputError(f"`label` must be a part of `mask`, {mask.dtype} {mask.shape}")
    if not (clean.flags.c_contiguous and mask.flags.c_contiguous):
        raise InputError("`clean` and `mask` must be C-contiguous")
