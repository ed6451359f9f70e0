"""A list of jobs as a user writes it: YAML or JSON lines, checked whole before anything is painted."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stage_rt.errors import InputError, printable
from stage_rt.images import layouts
from stage_rt.images.masks import Reading
from stage_rt.names import RecipeName, SamplerName, SolverName, ViewName
from stage_rt.run.job import Job
from stage_rt.run.writer import defect_type, type_of
from stage_rt.spec import PromptName

_READINGS = {"mask_class", "mask_threshold"}
"""Fields that say how masks are read: one excludes the other."""
_LONGEST = 60
"""Characters of a wrong value that are shown."""


class Entry(BaseModel):
    """One job; paths are seen from the file's own folder. Fields as the options of ``stage-rt synth``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptName
    normals: Path
    masks: Path
    count: int | None = Field(default=None, ge=1, le=999_999)
    seed: int = Field(default=0, ge=0, lt=2**64)
    composite: bool = True
    sampler: SamplerName = "stage"
    steps: int | Literal["auto"] | None = None
    recipe: RecipeName | None = None
    guidance: float | None = Field(default=None, ge=0, le=20, allow_inf_nan=False)
    prompt_guidance: float | None = Field(default=None, ge=0, le=20, allow_inf_nan=False)
    solver: SolverName | None = None
    view: ViewName | None = None
    min_fill: float | None = Field(default=None, ge=0, le=1)
    retries: int = Field(default=5, ge=0, le=15)
    strict: bool = False
    rim: bool = True
    augment_masks: bool = False
    object: Path | None = None
    mask_class: int | None = Field(default=None, ge=1, le=65535)
    mask_threshold: float | None = Field(default=None, ge=0, le=1)

    def job(self, batch: int) -> Job:
        """The job, with the files that are in its folders.

        Raises:
            InputError: a folder holds no images, or masks are to be read in two ways.
        """
        if self.mask_class is not None and self.mask_threshold is not None:
            raise InputError(
                "`--mask-class` and `--mask-threshold` both say what is labelled", "give one of them"
            )
        masks = layouts.masks(self.masks, defect_type(self.prompt))
        return Job(
            normals=layouts.normals(self.normals),
            masks=masks,
            prompt=self.prompt,
            count=self.count or len(masks),
            seed=self.seed,
            composite=self.composite,
            batch=batch,
            sampler=self.sampler,
            recipe=self.recipe,
            steps=self.steps,
            guidance=self.guidance,
            prompt_guidance=self.prompt_guidance,
            solver=self.solver,
            view=self.view,
            min_fill=self.min_fill,
            retries=self.retries,
            strict=self.strict,
            rim=self.rim,
            augment=self.augment_masks,
            objects=layouts.masks(self.object) if self.object else (),
            reading=Reading(self.mask_class, self.mask_threshold),
        )

    def tell_of_another_type(self, prompts: Iterable[str], notify: Callable[[str], None]) -> None:
        """Say so if the folder of the masks is called after another type of the ``prompts`` of a model."""
        name = Path(os.path.abspath(self.masks)).name
        other = next((one for one in prompts if type_of(one) == name), None)
        if other is not None and name != defect_type(self.prompt):
            notify(f"masks of {self.prompt!r} are taken from `{self.masks}`, which is called after {other!r}")


class _Written(NamedTuple):
    """What a file says of one job, in which line it begins, and those of its fields where they differ."""

    line: int
    fields: Any
    lines: Mapping[str, int] = MappingProxyType({})


def read_jobs(path: Path, defaults: Mapping[str, Any]) -> list[Entry]:
    """The jobs of a file: a YAML list, or JSON objects one a line in a ``.jsonl``.

    Args:
        path: the file.
        defaults: fields of jobs that do not say otherwise.

    Raises:
        InputError: the file cannot be read, or two jobs would write the same files; names line and field of what is
            wrong in it.
    """
    try:
        # Editors of some systems begin it with a mark.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"`{path}` cannot be read ({reason}): check the path") from None
    written = list(_json_lines(path, text) if path.suffix == ".jsonl" else _yaml(path, text))
    if not written:
        raise InputError(f"`{path}` lists no jobs: add one with `prompt`, `normals` and `masks`")
    entries = [_entry(path, one, defaults) for one in written]
    return checked(entries, [f"`{path}` line {one.line}: " for one in written])


def checked(entries: Sequence[Entry], where: Sequence[str] | None = None) -> list[Entry]:
    """``entries``, no two of which paint the same type; what is told of one begins with ``where`` it is.

    Raises:
        InputError: two would write the same files.
    """
    seen: dict[str, str] = {}
    for entry, place in zip(entries, where or [""] * len(entries), strict=True):
        kind = defect_type(entry.prompt)
        if kind in seen:
            raise InputError(
                f"{place}prompts {seen[kind]!r} and {entry.prompt!r} both write `test/{kind}`: put them into two runs"
            )
        seen[kind] = entry.prompt
    return list(entries)


def entry(fields: Mapping[str, Any]) -> Entry:
    """A job from options of the command line.

    Raises:
        InputError: names the field that is wrong.
    """
    try:
        return Entry.model_validate(fields)
    except ValidationError as error:
        raise InputError(_first(error, lambda field, value: f"--{field.replace('_', '-')} {value}")) from None


def _entry(path: Path, written: _Written, defaults: Mapping[str, Any]) -> Entry:
    if not isinstance(written.fields, dict):
        raise InputError(
            f"`{path}` line {written.line} is no job: write `prompt`, `normals` and `masks` of one"
        )
    own = {
        name: path.parent / value
        if name in ("normals", "masks", "object") and isinstance(value, str)
        else value
        for name, value in written.fields.items()
    }
    if own.keys() & _READINGS:
        defaults = {name: value for name, value in defaults.items() if name not in _READINGS}
    try:
        return Entry.model_validate({**defaults, **own})
    except ValidationError as error:
        line = written.lines.get(str(error.errors()[0]["loc"][0]), written.line)
        told = _first(error, lambda field, value: f"{field}: {value}")
        raise InputError(f"`{path}` line {line}: {told}") from None


def _first(error: ValidationError, written: Callable[[str, str], str]) -> str:
    """The first fault of a job, with what is at fault as it was, or is to be, ``written``."""
    fault = error.errors()[0]
    field = printable(str(fault["loc"][0]))
    if fault["type"] == "missing":
        return f"`{field}` is missing: add `{written(field, 'DIR' if field != 'prompt' else 'NAME')}`"
    if fault["type"] == "extra_forbidden":
        return f"`{field}` is no field of a job: use some of {', '.join(Entry.model_fields)}"
    value = printable(str(fault["input"]))[:_LONGEST]
    return f"`{written(field, value)}` is not valid ({printable(fault['msg'])})"


def _json_lines(path: Path, text: str) -> Iterator[_Written]:
    # Not `splitlines`, which cuts at characters that JSON has in its strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _Written(number, json.loads(line, object_pairs_hook=partial(_once, path, number)))
            except (ValueError, RecursionError):
                raise InputError(f"`{path}` line {number} is no JSON: write one object a line") from None


def _once(path: Path, line: int, fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object, of which the last of two of one name would be taken without a word."""
    once: dict[str, Any] = {}
    for name, value in fields:
        if name in once:
            raise _twice(path, line, name)
        once[name] = value
    return once


def _twice(path: Path, line: int, name: str) -> InputError:
    return InputError(
        f"`{path}` line {line} gives `{printable(name)}` of one job a second time: remove one, or begin another job"
    )


def _yaml(path: Path, text: str) -> Iterator[_Written]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return
        if not isinstance(root, yaml.SequenceNode):
            raise InputError(f"`{path}` holds no list of jobs: begin each with `- prompt: NAME`")
        for node in root.value:
            yield _job(path, node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(
            f"`{path}` line {line} is no YAML ({printable(str(error.problem))}): mend it"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"`{path}` is no YAML ({printable(type(error).__name__)}): mend it") from None


def _job(path: Path, node: yaml.Node) -> _Written:
    begin, lines = node.start_mark.line + 1, dict[str, int]()
    # A forgotten dash makes two jobs one, and PyYAML takes the last of two fields of one name.
    for name, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(name, yaml.ScalarNode):
            line = name.start_mark.line + 1
            if name.value in lines:
                raise _twice(path, line, name.value)
            lines[name.value] = line
    try:
        return _Written(begin, yaml.SafeLoader("").construct_document(node), lines)
    except (ValueError, LookupError, AttributeError):
        # PyYAML takes for granted that the text is what its tag says.
        raise InputError(
            f"`{path}` line {begin} holds a date, or a value with a tag, that is none: mend it"
        ) from None
