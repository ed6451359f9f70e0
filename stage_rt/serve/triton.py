"""Pairs inside Triton: what the ``model.py`` of an exported repository hands its requests to."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.backends.triton import TritonBackend
from stage_rt.engine import Engine
from stage_rt.errors import GraphsError, ImageError, InputError, MaskError, StageError, unforeseen
from stage_rt.executor import HostExecutor
from stage_rt.folders import read_contexts, read_description, verify
from stage_rt.images.inputs import image_of
from stage_rt.run.job import resolve
from stage_rt.serve.executor import CancelledError
from stage_rt.serve.pairs import IMAGE, Request, Room, asked, check_pixels, painted
from stage_rt.spec import GRAPHS_FILE, PROMPTS_FILE, EngineSpec, GraphsSpec

TOGETHER = 8
"""Regions of one pair that go through the networks side by side."""
REMEDY = "make the repository again with `stage-rt export-triton`"


class Painter:
    """Paints what is asked of one model of Triton, pair by pair, as `stage-rt serve` does.

    Args:
        folder: holds the model's description and its contexts.
        name: of the model, with which the names of its networks begin.
        utils: the module ``triton_python_backend_utils``.

    Raises:
        GraphsError: a file in ``folder`` is missing or was changed.
    """

    def __init__(self, folder: Path, name: str, utils: Any) -> None:
        absent = f"holds no {GRAPHS_FILE}: {REMEDY}"
        graphs = read_description(folder / GRAPHS_FILE, GraphsSpec, GraphsError, absent=absent, remedy=REMEDY)
        verify(folder, graphs.files, GRAPHS_FILE, GraphsError, REMEDY)
        contexts = read_contexts(folder / PROMPTS_FILE, graphs.model, GraphsError, REMEDY)
        backend = TritonBackend(graphs.model, graphs.dtype, name, utils)
        executor = HostExecutor(graphs.model, backend)
        self._engine, self._name, self._utils = Engine(_served(graphs), executor, contexts), name, utils
        self._room = Room()

    def answer(self, request: Any) -> Any:
        """The response to a request; what is wrong becomes its error, and nothing is raised."""
        failed = self._utils.TritonError
        try:
            return self._utils.InferenceResponse(output_tensors=self._painted(request))
        except InputError as error:
            told = failed(str(error), failed.INVALID_ARG)
        except CancelledError as error:
            told = failed(str(error), failed.CANCELLED)
        except StageError as error:
            told = failed(str(error), failed.INTERNAL)
        except Exception as error:
            told = failed(f"stage-rt failed: {unforeseen(error)}", failed.INTERNAL)
        return self._utils.InferenceResponse(error=told)

    def _painted(self, request: Any) -> list[Any]:
        order = self._order(request)

        def still_wanted(share: float) -> None:
            if request.is_cancelled():
                raise CancelledError("the request was cancelled")

        result = painted(self._engine, order, size=TOGETHER, progress=still_wanted, room=self._room)
        assert result.image is not None
        assert result.figures is not None
        return [
            self._utils.Tensor("image", image_of(result.image, IMAGE)),
            self._utils.Tensor("fill", np.array([result.figures.fill], np.float32)),
        ]

    def _order(self, request: Any) -> Request:
        """A request's tensors, checked.

        Raises:
            InputError, PromptError, ImageError, MaskError: it cannot be painted.
        """
        given = {name: self._given(request, name) for name in ("image", "mask", "prompt", "seed", "steps")}
        missing = [name for name, value in given.items() if value is None and name != "steps"]
        if missing:
            raise InputError(f"input `{missing[0]}` is missing")
        photo, label = _checked(given["image"], given["mask"])
        prompt = _one("prompt", given["prompt"])
        prompt = prompt.decode(errors="replace") if isinstance(prompt, bytes) else str(prompt)
        seed = int(_one("seed", given["seed"]))
        steps = None if given["steps"] is None else int(_one("steps", given["steps"]))
        method = resolve(asked(prompt, seed, steps), self._engine.spec.model)
        return Request(self._name, prompt, photo, label, False, seed, method)

    def _given(self, request: Any, name: str) -> Any:
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy()


def _served(graphs: GraphsSpec) -> EngineSpec:
    """Networks that Triton runs, as an engine's description; for which device is the server's to know."""
    return EngineSpec(
        model=graphs.model,
        backend="onnxruntime",
        library="triton",
        library_version="",
        devices=["cpu"],
        dtype=graphs.dtype,
        batch=[TOGETHER],
        graphs_fingerprint=graphs.fingerprint,
        files={},
    )


def _checked(image: NDArray[Any], mask: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ImageError(f"`image` must be uint8 of shape [H, W, 3], got {image.dtype} {image.shape}")
    if mask.shape != image.shape[:2] or mask.dtype != np.uint8:
        raise MaskError(f"`mask` must be uint8 of shape {image.shape[:2]}, got {mask.dtype} {mask.shape}")
    check_pixels(image.shape[1], image.shape[0], ImageError)
    if not mask.any():
        raise MaskError("`mask` is 0 everywhere", "make it another number where the defect shall be")
    return image, mask != 0


def _one(name: str, value: NDArray[Any]) -> Any:
    if value.size != 1:
        raise InputError(f"`{name}` must be one value, got {value.size}")
    return value.flat[0]
