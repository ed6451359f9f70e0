"""Triton without Triton: the models of a repository behind ``triton_python_backend_utils``, run by ONNX Runtime.

Requests pass the checks that Triton's configuration asks for: names, dtypes, dimensions. What it cannot prove is that
the server itself loads the repository.
"""

import importlib.util
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
from google.protobuf import text_format

NUMPY = {
    "TYPE_UINT8": np.uint8,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_UINT64": np.uint64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_STRING": np.object_,
}


@cache
def schema() -> ModuleType:
    """``model_config_pb2`` as tritonclient has it, without the gRPC that the rest of that package needs."""
    path = metadata.distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    return loaded("model_config_pb2", Path(str(path)))


def loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(model: Path):
    """``config.pbtxt`` of a model's folder, a ``ModelConfig``."""
    return text_format.Parse((model / "config.pbtxt").read_text(), schema().ModelConfig())


def dtype(tensor) -> type:
    """NumPy's dtype of an input or output in a ``ModelConfig``."""
    return NUMPY[schema().DataType.Name(tensor.data_type)]


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG, CANCELLED = 1, 3, 7

    def __init__(self, message, code=INTERNAL):
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class Request:
    """As the Python backend hands one over; it is cancelled when it was asked ``patience`` times."""

    def __init__(self, inputs, patience=10**9):
        self._inputs, self.patience = inputs, patience

    def inputs(self):
        return self._inputs

    def is_cancelled(self):
        self.patience -= 1
        return self.patience < 0


class FakeTriton(ModuleType):
    """The module that a ``model.py`` of ``repository`` imports; ``calls`` are the models that were run."""

    TRITONSERVER_MEMORY_CPU = 0
    Tensor, TritonError, InferenceResponse = Tensor, TritonError, InferenceResponse

    def __init__(self, repository: Path):
        super().__init__("triton_python_backend_utils")
        self.repository, self.calls, self.lost = repository, [], set()
        self._sessions = {}
        self.InferenceRequest = lambda **fields: _Call(self, **fields)

    @staticmethod
    def PreferredMemory(kind, device):  # noqa: N802
        return kind, device

    @staticmethod
    def get_input_tensor_by_name(request, name):
        return next((tensor for tensor in request.inputs() if tensor.name() == name), None)

    @staticmethod
    def get_output_tensor_by_name(response, name):
        return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)

    def start(self, name: str):
        """The ``TritonPythonModel`` of a model, initialised."""
        place = self.repository / name
        before = sys.modules.get(self.__name__)
        sys.modules[self.__name__] = self
        try:
            model = loaded(f"{name}_model", place / "1" / "model.py").TritonPythonModel()
        finally:
            del sys.modules[self.__name__]
            if before is not None:
                sys.modules[self.__name__] = before
        arguments = {"model_name": name, "model_version": "1", "model_repository": str(place)}
        model.initialize(arguments)
        return model

    def ask(self, model, name: str, *, patience=10**9, **arrays) -> InferenceResponse:
        """What a client that sends ``arrays`` to a started model gets."""
        takes = config(self.repository / name)
        self.check(takes.input, arrays)
        (response,) = model.execute([Request([Tensor(*each) for each in arrays.items()], patience)])
        if not response.has_error():
            self.check(takes.output, {each.name(): each.as_numpy() for each in response.output_tensors()})
        return response

    @staticmethod
    def check(tensors, arrays) -> None:
        """What Triton refuses before a model sees it."""
        known = {tensor.name: tensor for tensor in tensors}
        wanted = {name for name, tensor in known.items() if not getattr(tensor, "optional", False)}
        if not wanted <= arrays.keys() <= known.keys():
            raise ValueError(f"expected {sorted(known)} but got {sorted(arrays)}")
        for name, array in arrays.items():
            dims = known[name].dims
            fits = len(dims) == array.ndim and all(
                d in (-1, n) for d, n in zip(dims, array.shape, strict=True)
            )
            if array.dtype != dtype(known[name]) or not fits:
                raise ValueError(
                    f"unexpected {array.dtype} {array.shape} for `{name}`, expecting {list(dims)}"
                )

    def run(self, name: str, arrays, outputs):
        """Run a network's model."""
        if name in self.lost or not (self.repository / name).is_dir():
            raise ValueError(f"Request for unknown model: '{name}' is not found")
        self.check(config(self.repository / name).input, arrays)
        if name not in self._sessions:
            path = self.repository / name / "1" / "model.onnx"
            self._sessions[name] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.calls.append(name)
        return self._sessions[name].run(outputs, arrays)


class _Call:
    def __init__(self, server, *, model_name, requested_output_names, inputs, preferred_memory):
        assert preferred_memory == (server.TRITONSERVER_MEMORY_CPU, 0)
        self._server, self._name, self._outputs = server, model_name, requested_output_names
        self._inputs = {tensor.name(): tensor.as_numpy() for tensor in inputs}

    def exec(self):
        try:
            arrays = self._server.run(self._name, self._inputs, self._outputs)
        except Exception as error:
            return InferenceResponse(error=TritonError(str(error)))
        return InferenceResponse([Tensor(*each) for each in zip(self._outputs, arrays, strict=True)])
