"""AnoGen's sampler (Gui et al., "Few-Shot Anomaly-Driven Generation", ECCV 2024, arXiv:2505.09263)."""

import numpy as np
from scipy import ndimage

from stage_rt.noise import NoiseSource
from stage_rt.recipe import Recipe
from stage_rt.sampler import Callback, Denoiser, check_inputs
from stage_rt.samplers.anomalydiffusion import anomalydiffusion
from stage_rt.samplers.unguided import Array

STEPS = 50
PROMPT_GUIDANCE = 10.0
"""Their weight of the defect's embedding against the empty text (classifier-free guidance)."""


def anogen(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    steps: int,
    callback: Callback | None = None,
) -> Array:
    """AnoGen's sampler: DDIM without noise of its own, the background put back around a box before every step.

    As the released code runs it (``--ddim_eta 0 --ddim_steps 50 --scale 10``): the guidance is the denoiser's, and
    `boxes` are where it paints. ``steps`` is the number of network calls for the prompt; other arguments, result and
    errors as `stage_rt.sampler.sample`.
    """
    check_inputs(clean, mask)
    boxed = boxes(mask)
    return anomalydiffusion(
        denoise, clean, boxed, recipe=recipe, noise=noise, steps=steps, callback=callback, eta=0.0
    )


def boxes(mask: Array) -> Array:
    """The bounding boxes of the connected parts of masks ``[B, 1, h, w]``, filled, of their shape and dtype.

    Cells that touch at a corner are connected. A box is its own.
    """
    filled = np.zeros_like(mask)
    for sample, out in zip(mask[:, 0], filled[:, 0], strict=True):
        parts, _ = ndimage.label(sample, np.ones((3, 3)))
        for place in ndimage.find_objects(parts):
            out[place] = 1
    return filled
