"""The networks of a backend as one function of a batch, whose samples may stand at steps of their own."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.kernels.reference import guide, select
from stage_rt.networks import Backend
from stage_rt.recipe import Branch
from stage_rt.spec import UNET, adapter_graph

Float32 = NDArray[np.float32]


class Condition(NamedTuple):
    """What a prompt is to the networks: its context float32 ``[tokens, dim]``, and its adapters' name or None.

    ``surface`` is the context of good surface, None where the model has none.
    """

    context: Float32
    adapter: str | None
    surface: Float32 | None = None


class Estimator:
    """UNet and one pair of adapters, or none; every network is called with the whole batch or not at all."""

    def __init__(self, backend: Backend, adapter: str | None) -> None:
        self._backend, self._adapter = backend, adapter

    def __call__(
        self,
        x: Float32,
        timesteps: NDArray[np.int64],
        mask: Float32,
        *,
        contexts: Float32,
        surfaces: Float32 | None,
        only: NDArray[np.bool_],
        guidance: float | NDArray[Any],
        prompt_guidance: float | NDArray[Any],
    ) -> Float32:
        """The guided noise estimate ``[B, C, h, w]``.

        Args:
            x: states ``[B, C, h, w]``.
            timesteps: where each of them stands, ``[B]``.
            mask: what the adapter is handed, ``[B, 1, h, w]``.
            contexts: each sample's, ``[B, tokens, dim]``.
            surfaces: that of good surface, of the same shape; None where no prompt is weighed against it.
            only: which samples are in the only branch, ``[B]``.
            guidance: weight of the adapter's estimate against the UNet's, one or ``[B]``.
            prompt_guidance: weight of the UNet's for the prompt against that for good surface, one or ``[B]``.

        Raises:
            BackendError: the inference library failed.
        """
        eps = self._backend.run(UNET, sample=x, timestep=timesteps, context=contexts)
        if np.any(np.not_equal(prompt_guidance, 1)):
            assert surfaces is not None
            plain = self._backend.run(UNET, sample=x, timestep=timesteps, context=surfaces)
            eps = guide(plain, eps, prompt_guidance)
        if self._adapter is None:
            return eps
        adapted = {
            branch: self._backend.run(adapter_graph(self._adapter, branch), eps=eps, mask=mask)
            for branch in Branch
            if (only == (branch is Branch.ONLY)).any()
        }
        both = len(adapted) == len(Branch)
        own = select(adapted[Branch.AWARE], adapted[Branch.ONLY], only) if both else adapted.popitem()[1]
        return guide(eps, own, guidance)
