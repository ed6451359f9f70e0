"""What tells a run from another job, in words: the difference, and what was to be given instead."""

from collections.abc import Callable, Iterable, Mapping

from stage_rt.run.sample import few_of
from stage_rt.samplers import steps_of
from stage_rt.spec import PairRecord, RunSpec

Given = Mapping[str, Mapping[str, str | None]]
"""The names of all ``normals`` and ``masks`` that a job is given, with the sha256 of those that are known."""

_FILES = {"normals": "photographs", "masks": "masks"}
_VALUES = ("prompt", "sampler", "seed", "steps", "min_fill", "retries", "mask_class", "mask_threshold")
_OF_THE_RECIPE = {
    "recipe.name": "--recipe",
    "recipe.guidance": "--guidance",
    "recipe.prompt_guidance": "--prompt-guidance",
    "recipe.solver": "--solver",
}
_SWITCHES = {
    "composite": ("--no-composite", False),
    "strict": ("--strict", True),
    "augment": ("--augment-masks", True),
}
"""Options that say the one of two values that is not their default, and which one that is."""
_MAY_DIFFER = ("recipe", "count", "batch", "backend")


def fields_of(spec: RunSpec) -> dict[str, object]:
    """What makes a run, by the names it is told by.

    Raises:
        InputError: the sampler cannot take so many steps.
    """
    # Not as JSON, which leaves out what says nothing.
    recipe = {f"recipe.{name}": value for name, value in spec.recipe}
    steps = steps_of(spec.sampler, spec.recipe, spec.steps)
    return dict(spec) | {"steps": steps, "min_fill": spec.min_fill or 0.0} | recipe


def difference(
    old: RunSpec, new: RunSpec, given: Callable[[], Given], pairs: Callable[[], Iterable[PairRecord]]
) -> tuple[str, str] | None:
    """In what the run of ``old`` is not the job of ``new``, and the way back to it; None where it is.

    ``given`` are the files of ``new``, ``pairs`` what was painted of ``old``; they are asked for if files differ.
    """
    before, now = fields_of(old), fields_of(new)
    for field, value in now.items():
        was = before[field]
        # Older releases wrote no dtype; the engine's graphs have it too.
        if field in _MAY_DIFFER or was == value or (field == "dtype" and was is None):
            continue
        if field in _FILES:
            names = given().get(field, {})
            told = _other_files(_FILES[field], names, _used(field, old, pairs()))
            return told, "give the files it was started with"
        return _told(field, was, value), _way_back(field, was)
    return None


def _told(field: str, was: object, value: object) -> str:
    if field == "rules":
        return "whose labels and paint are by the rules of another release"
    if field == "objects":
        return "whose masks of the object are others"
    if field == "dtype":
        return f"whose engine is {was} and not {value}"
    if field == "engine":
        return f"whose engine is of other graphs ({str(was)[:12]}... and not {str(value)[:12]}...)"
    if field == "region":
        return f"whose view is {_view(was)} and not {_view(value)}"
    if field == "shard":
        return f"whose shard is {was or 'all of it'} and not {value or 'all of it'}"
    return f"whose {field} is {was!r} and not {value!r}"


def _way_back(field: str, was: object) -> str:
    if field == "rules":
        return "finish it with the release that began it"
    if field == "objects":
        return "leave `--object` out" if was is None else "give the `--object` it was started with"
    if field == "dtype":
        return f"give an engine that was built with `--dtype {was}`"
    if field == "engine":
        return "give the engine it was started with"
    if field == "region":
        return f"add `--view {_view(was)}`"
    if field in _SWITCHES:
        option, meant = _SWITCHES[field]
        return f"add `{option}`" if was == meant else f"leave `{option}` out"
    if field == "rim":
        return "leave `--no-rim` out" if was else "add `--no-rim`"
    if field in _OF_THE_RECIPE:
        return f"add `{_OF_THE_RECIPE[field]} {_shown(was)}`"
    if field in _VALUES:
        option = f"--{field.replace('_', '-')}"
        return f"leave `{option}` out" if was is None else f"add `{option} {_shown(was)}`"
    return "give the job it was started with"


def _shown(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else value


def _view(region: object) -> str:
    return "whole" if region is None else "region"


def _used(field: str, spec: RunSpec, pairs: Iterable[PairRecord]) -> dict[str, str | None]:
    """The files that pairs were made from by their names, with their sha256 where it is that of one file."""
    used: dict[str, str | None] = {}
    for pair in pairs:
        if field == "normals":
            used[pair.normal] = pair.normal_sha256
        elif field == "masks" and spec.augment:
            used |= dict.fromkeys(pair.label.split(" + "))
        elif field == "masks":
            used[pair.label] = pair.label_sha256
    return used


def _other_files(what: str, given: Mapping[str, str | None], used: Mapping[str, str | None]) -> str:
    """How the files that are ``given`` are not those that pairs were made from, which need not have been all."""
    changed = [
        n for n, digest in used.items() if digest is not None and given.get(n, digest) not in (None, digest)
    ]
    kinds = {
        "removed or renamed": [name for name in used if name not in given],
        "changed": changed,
        "added, or in no pair so far": [name for name in given if name not in used] if used else [],
    }
    told = "; ".join(f"{few_of(names)} {kind}" for kind, names in kinds.items() if names)
    return f"whose {what} are others ({told or f'{len(given)} are given'})"
