"""Pairs that a person rejected, as the page's list names them: each is painted again from other noise.

A pair's line in the manifest says so before anything is painted, so that a run that is cut off goes on with it. It
keeps the digests of the images that were rejected, so that the same list again asks for nothing.
"""

import os
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stage_rt.errors import InputError, RunError, printable
from stage_rt.run.ledger import Manifest, Place, read_line
from stage_rt.run.plan import Plan
from stage_rt.run.writer import defect_type
from stage_rt.spec import MANIFEST_FILE, PairRecord

Rejected = Mapping[int, str]
"""The beginning of the digest of each rejected image of a type, by the pair's index."""
NOTHING: Mapping[str, Rejected] = MappingProxyType({})
_OF_THE_IMAGE = ("image", "mask", "image_sha256", "mask_sha256", "fill", "leak", "contrast", "label_pixels")
_RESET = dict.fromkeys((*_OF_THE_IMAGE, "round_trip", "box", "attempts", "weak", "regions"))


class _Pair(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    index: int = Field(ge=0)
    image: str = Field(pattern=r"^[0-9a-f]{16,64}$")


class _List(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    rejected: list[_Pair]


def read_list(path: Path) -> dict[str, dict[int, str]]:
    """The pairs of a list, by type.

    Raises:
        InputError: it cannot be read, or is no list of rejected pairs.
    """
    try:
        found = _List.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"`{path}` cannot be read ({error.strerror})", "check the path") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = printable(".".join(map(str, fault["loc"]))) or "the whole"
        raise InputError(
            f"`{path}` is no list of rejected pairs ({where}: {printable(fault['msg'])})",
            "download it from the page of the run",
        ) from None
    listed: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for pair in found.rejected:
        listed[pair.type][pair.index] = pair.image
    return dict(listed)


def check(listed: Mapping[str, Rejected], made: Sequence[tuple[Plan, Place]]) -> None:
    """See that a list is of these runs before anything is changed.

    Raises:
        RunError: it is of another run, or of another state of this one.
        InputError: it names a type that is not among them.
    """
    runs = {defect_type(plan.spec.prompt): (plan.spec.prompt, place) for plan, place in made}
    for kind, rejected in listed.items():
        if kind not in runs:
            raise InputError(
                f"the list rejects pairs of type `{printable(kind)}`, which this command does not paint",
                "give the options the run was painted with",
            )
        prompt, place = runs[kind]
        known = _images(place.ledger / MANIFEST_FILE, prompt, rejected)
        for index, image in rejected.items():
            if not any(digest.startswith(image) for digest in known.get(index, ())):
                raise RunError(
                    f"the list is of another run than `{place.data}` or of another state of it "
                    f"({printable(kind)} {index} has another image)",
                    "download it anew from the page of this run",
                )


def mark(manifest: Manifest, rejected: Rejected) -> int:
    """Write into the manifest which pairs are to be painted again; returns how many.

    Those whose rejected image was replaced already are left as they are.
    """
    marked = 0
    for record in standing(manifest, rejected):
        images = [*(record.rejected or ()), str(record.image_sha256)]
        manifest.append(record.model_copy(update={**_RESET, "status": "rejected", "rejected": images}))
        marked += 1
    return marked


def standing(manifest: Manifest, rejected: Rejected) -> Iterator[PairRecord]:
    """The pairs whose rejected image was not replaced yet."""
    for index, image in sorted(rejected.items()):
        record = manifest.records.get(index)
        if record is not None and record.image_sha256 is not None and record.image_sha256.startswith(image):
            yield record


def _images(path: Path, prompt: str, indices: Container[int]) -> dict[int, list[str]]:
    """The digests of the present and the rejected images of some pairs of a manifest."""
    found: dict[int, list[str]] = {}
    with path.open("rb") if path.is_file() else open(os.devnull, "rb") as lines:
        for line in lines:
            try:
                record = read_line(line, prompt)
            except ValueError:
                # Told, or dropped, when the run is opened.
                continue
            if record.index in indices:
                found[record.index] = [*(record.rejected or ()), record.image_sha256 or ""]
    return found
