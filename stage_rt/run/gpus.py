"""What the GPUs of this machine are doing, as NVML tells it."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """A GPU now: share of the time it was busy, memory in bytes, watts and degrees Celsius; None where not told."""

    number: int
    name: str
    busy: float | None
    memory: int | None
    power: float | None
    temperature: int | None


def gpus() -> list[Gpu]:
    """All GPUs; none where NVML or its bindings (extra ``gpu``) are not there."""
    try:
        nvml = import_module("pynvml")
    except ModuleNotFoundError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [_gpu(nvml, number) for number in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, number: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)

    def told(question: str, *more: object) -> Any:
        """A figure, which not every GPU has."""
        try:
            return getattr(nvml, question)(handle, *more)
        except nvml.NVMLError:
            return None

    name, use, memory, power = (
        told(f"nvmlDeviceGet{what}") for what in ("Name", "UtilizationRates", "MemoryInfo", "PowerUsage")
    )
    return Gpu(
        number,
        str(name),
        busy=None if use is None else use.gpu / 100,
        memory=None if memory is None else int(memory.used),
        power=None if power is None else power / 1000,
        temperature=told("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
    )
