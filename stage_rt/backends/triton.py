"""Triton: graphs that a server holds, run from one of its Python models by business logic scripting (BLS).

https://github.com/triton-inference-server/python_backend#business-logic-scripting
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import BackendError, first_line
from stage_rt.names import DType
from stage_rt.networks import narrow, tensors, widen
from stage_rt.spec import ModelSpec


def model_names(model: ModelSpec, name: str) -> dict[str, str]:
    """What the graphs of a model are called as models of Triton, where they are folders and parts of addresses.

    ``name`` is their first part; of the rest, letters, digits, ``_`` and ``-`` stay and anything else becomes ``_``,
    with one more behind a name that another graph has.
    """
    names: dict[str, str] = {}
    for graph in model.graphs:
        plain = f"{name}_{re.sub(r'[^A-Za-z0-9_-]', '_', graph)}"
        while plain in names.values():
            plain += "_"
        names[graph] = plain
    return names


class TritonBackend:
    """A `stage_rt.networks.Backend` whose every call is an inference request to the server around it.

    Args:
        model: whose graphs they are.
        dtype: theirs.
        name: see `model_names`.
        utils: the module ``triton_python_backend_utils``, which only the processes of Triton's Python models have.
    """

    def __init__(self, model: ModelSpec, dtype: DType, name: str, utils: Any) -> None:
        self._model, self._dtype, self._utils = model, dtype, utils
        self._names = model_names(model, name)

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `stage_rt.networks.Backend`."""
        utils, name = self._utils, self._names[graph]
        takes, (output, given) = tensors(self._model, self._dtype, graph, batch=-1)
        request = utils.InferenceRequest(
            model_name=name,
            requested_output_names=[output],
            inputs=[utils.Tensor(each, narrow(inputs[each], tensor.dtype)) for each, tensor in takes.items()],
            # Left to itself it stays where the network ran, and what is on a GPU is no array.
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        try:
            response = request.exec()
        except Exception as error:  # Of the server's own kind, which only it knows.
            raise BackendError(f"Triton did not run model `{name}`: {first_line(error)}") from error
        if response.has_error():
            raise BackendError(f"Triton failed in model `{name}`: {response.error().message()}")
        return widen(utils.get_output_tensor_by_name(response, output).as_numpy(), given.dtype)

    def close(self) -> None:
        """The networks are the server's."""
