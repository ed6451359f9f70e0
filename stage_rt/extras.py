"""Libraries of the optional extras, imported when they are first needed."""

from importlib import import_module
from types import ModuleType

from stage_rt.errors import MissingExtraError


def library(module: str, needed: str, extra: str) -> ModuleType:
    """An optional module.

    Args:
        module: its full name.
        needed: who needs what, as the beginning of the message.
        extra: of stage-rt, that brings it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        raise MissingExtraError(
            f"{needed}, which is not installed: `pip install 'stage-rt[{extra}]'`"
        ) from missing
