"""Libraries of the optional extras, imported when they are first needed."""

from importlib import import_module
from types import ModuleType

from stage_rt.errors import MissingExtraError, first_line


def library(module: str, needed: str, extra: str) -> ModuleType:
    """An optional module.

    Args:
        module: its full name.
        needed: who needs what, as the beginning of the message.
        extra: of stage-rt, that brings it.

    Raises:
        MissingExtraError: it is not installed, or what is installed cannot be loaded.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as failed:
        # Or a library that it needs itself.
        if isinstance(failed, ModuleNotFoundError) and f"{module}.".startswith(f"{failed.name or module}."):
            raise MissingExtraError(
                f"{needed}, which is not installed: `pip install 'stage-rt[{extra}]'`"
            ) from failed
        raise MissingExtraError(
            f"{needed}, which is installed and cannot be loaded ({first_line(failed)}): install it again"
        ) from failed
