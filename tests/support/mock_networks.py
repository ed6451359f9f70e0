"""Closed-form networks on a `soft_gpu.SoftGpu`, and the same ones as a denoiser for `stage_rt.sampler.sample`."""

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext

import numpy as np
from soft_gpu import SoftGpu

from stage_rt.errors import BackendError
from stage_rt.kernels.reference import guide
from stage_rt.networks import STORAGE, Tensor, narrow, widen
from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import UNET, VAE_DECODER, VAE_ENCODER, EngineSpec, ModelSpec

PROMPTS = {"tile+crack": "a", "tile+hole": "a", "tile+chip": "b", "tile+bare": None}
SURFACE = "tile"
SIDE, CHANNELS, TOKENS, WIDTH, SCALE = 8, 4, 3, 5, 0.5


def spec(recipe: Recipe, *, dtype="fp32", batch=(1, 2, 4)) -> EngineSpec:
    model = ModelSpec(
        image_size=2 * SIDE,
        latent_channels=CHANNELS,
        latent_size=SIDE,
        latent_scale=SCALE,
        tokens=TOKENS,
        context_dim=WIDTH,
        recipe=recipe,
        prompts=PROMPTS,
        surface=SURFACE,
    )
    return EngineSpec(
        model=model,
        backend="onnxruntime",
        library="mock",
        library_version="0",
        devices=["sm90"],
        dtype=dtype,
        batch=list(batch),
        graphs_fingerprint="0" * 64,
        files={},
    )


def unet(sample, timestep, context):
    i = np.asarray(timestep, np.float32).reshape(-1, 1, 1, 1)
    share = context.mean(axis=(1, 2), dtype=np.float32)[:, None, None, None]
    return i / (i + np.float32(60)) * sample + np.float32(0.3) * np.sin(sample + np.float32(0.01) * i + share)


def adapter(name, branch, eps, mask):
    bias = np.float32(0.05 if name == "b" else 0)
    if branch is Branch.AWARE:
        return (np.float32(0.8) + np.float32(0.2) * mask) * eps + bias
    return (np.float32(0.9) - np.float32(0.3) * mask) * eps - bias


def encoder(image):
    """Mean and log variance; the latent has half the image's side and one channel more."""
    small = image.reshape(len(image), 3, SIDE, 2, SIDE, 2).mean(axis=(3, 5), dtype=np.float32)
    mean = np.concatenate([small, small[:, :1]], axis=1)
    return np.concatenate([mean, np.full_like(mean, -4)], axis=1)


def decoder(latent):
    return np.repeat(np.repeat(np.tanh(latent[:, :3]), 2, axis=2), 2, axis=3)


def denoiser(name, context, dtype="fp32", guidance=1.0, surface=None, prompt_guidance=1.0):
    """The networks one after the other on the host, every tensor between them in ``dtype``; ``name`` may be None."""

    def rounded(array):
        return widen(narrow(array, dtype), dtype)

    def denoise(x, i, mask, branch):
        def estimate(text):
            return rounded(unet(rounded(x), i, rounded(np.repeat(text[None], len(x), axis=0))))

        eps = estimate(context)
        if prompt_guidance != 1:
            eps = rounded(guide(estimate(surface), eps, prompt_guidance))
        if name is None:
            return eps
        return guide(eps, rounded(adapter(name, branch, eps, rounded(mask))), guidance)

    return denoise


class HostBackend:
    """The functions above as a library of the CPU would run them; ``calls`` are the graphs that ran."""

    def __init__(self):
        self.calls: list[str] = []

    def run(self, graph, **inputs):
        self.calls.append(graph)
        if graph == UNET:
            return unet(inputs["sample"], inputs["timestep"], inputs["context"])
        if graph == VAE_ENCODER:
            return encoder(inputs["image"])
        if graph == VAE_DECODER:
            return decoder(inputs["latent"])
        name, branch = graph.removeprefix("adapters/").split(".")
        return adapter(name, Branch(branch), inputs["eps"], inputs["mask"])

    def close(self):
        pass


class Network:
    """One of the functions above; if it ``allocates``, every call of it asks for memory."""

    def __init__(self, machine, function, tensors, output, scratch, allocates=False):
        self.tensors, self.output, self.scratch = tensors, output, scratch
        self._machine, self._function, self._allocates = machine, function, allocates
        self._owned = ExitStack()
        self._allocate()

    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        assert addresses.keys() == self.tensors.keys()
        assert all(address % 256 == 0 for address in (*addresses.values(), scratch))
        self._addresses = dict(addresses)

    def enqueue(self, stream: int) -> None:
        if self._allocates:
            self._allocate()
        self._machine.enqueue(stream, self._run)

    def close(self) -> None:
        self._owned.close()

    def _allocate(self) -> None:
        self._owned.callback(self._machine.free, self._machine.allocate(1000))

    def _run(self) -> None:
        arrays = {
            name: self._machine.view(self._addresses[name], tensor.shape, STORAGE[tensor.dtype])
            for name, tensor in self.tensors.items()
        }
        inputs = {
            name: array.copy() if name == "timestep" else widen(array, self.tensors[name].dtype)
            for name, array in arrays.items()
            if name != self.output
        }
        result = self._function(**inputs)
        arrays[self.output][...] = narrow(result, self.tensors[self.output].dtype)


class MockBackend:
    """A `stage_rt.networks.DeviceBackend`; ``spoil`` may replace the function of a graph."""

    def __init__(self, machine: SoftGpu, spec: EngineSpec, *, scratch=4096, spoil=None) -> None:
        self.machine, self.spec, self.scratch = machine, spec, scratch
        self.spoil = spoil or {}
        self.opened: list[tuple[str, int]] = []
        self.allocates: set[str] = set()
        self.closed = False

    def network(self, graph: str, batch: int) -> Network:
        self.opened.append((graph, batch))
        function, tensors, output = self.described(graph, batch)
        return Network(
            self.machine,
            self.spoil.get(graph, function),
            tensors,
            output,
            self.scratch * batch,
            graph in self.allocates,
        )

    def described(self, graph: str, batch: int):
        """A graph's function, its tensors by name, and the name of its output."""
        function, inputs, output, shape = self._describe(graph, batch)
        tensors = {
            name: Tensor(size, "int64" if name == "timestep" else self.spec.dtype)
            for name, size in inputs.items()
        }
        return function, {**tensors, output: Tensor(shape, self.spec.dtype)}, output

    def recording(self):
        return nullcontext()

    def forget_recorded(self) -> None:
        pass

    def run(self, graph, **inputs):
        raise BackendError(f"`{graph}` was run from the host")

    def close(self) -> None:
        self.closed = True

    def _describe(self, graph, batch):
        latent, image = (batch, CHANNELS, SIDE, SIDE), (batch, 3, 2 * SIDE, 2 * SIDE)
        if graph == UNET:
            return (
                unet,
                {"sample": latent, "timestep": (batch,), "context": (batch, TOKENS, WIDTH)},
                "eps",
                latent,
            )
        if graph == VAE_ENCODER:
            return encoder, {"image": image}, "moments", (batch, 2 * CHANNELS, SIDE, SIDE)
        if graph == VAE_DECODER:
            return decoder, {"latent": latent}, "image", image
        name, branch = graph.removeprefix("adapters/").split(".")

        def run(eps, mask):
            return adapter(name, Branch(branch), eps, mask)

        return run, {"eps": latent, "mask": (batch, 1, SIDE, SIDE)}, "guided", latent
