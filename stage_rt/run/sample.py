"""One pair to be made, and where its label comes from."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from stage_rt.images.inputs import fit_mask, latent_mask
from stage_rt.images.masks import AS_IT_IS, Reading, read_mask
from stage_rt.images.objects import find_object
from stage_rt.images.regions import regions
from stage_rt.run.supply import Dice, placed
from stage_rt.spec import ModelSpec, RegionView

MADE = 64
"""Labels made for a sample until one shows: by the authors' rule a small one vanishes between the centres of the
latent's cells."""

UNCHECKED: Mapping[Path, str] = MappingProxyType({})
"""The digests of files whose contents nobody took down."""


def readable(path: Path) -> str:
    """The name of a file, which need not be text on the disk, as text."""
    return os.fsencode(path.name).decode(errors="replace")


def listed(paths: Sequence[Path]) -> str:
    """The first few of some files by their names, and how many more there are."""
    return few_of([readable(path) for path in paths])


def few_of(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


class Sight(NamedTuple):
    """How the networks of a model see labels: in squares around defects, or whole if ``view`` is None."""

    model: ModelSpec
    view: RegionView | None

    def shows(self, label: NDArray[np.bool_]) -> bool:
        """Whether something of every defect of a label bool ``[H, W]`` is left in its latent."""
        if self.model.recipe.mask_rule == "cover":
            return True
        return all(latent_mask(region.label, self.model).any() for region in regions(label, self.view))


@dataclass(frozen=True)
class Placing:
    """How a label is made from masks: the seed of its place, the mask it is joined with and the object's, if any.

    ``across`` says whether it may be mirrored to the opposite border of rows and of columns. The networks have to be
    shown it, as ``sight`` says.
    """

    seed: int
    partner: Path | None
    inside: Path | None
    across: tuple[bool, bool]
    sight: Sight


@dataclass(frozen=True)
class Sample:
    """One pair to be made; ``size`` is the (width, height) of its photograph, ``grey`` whether it has one channel.

    ``reading`` says how masks are read, ``placing`` is None where the label is the mask as it is. ``rejected`` are
    the sha256 of its images that a person rejected; it is painted from other noise than they were.
    """

    index: int
    normal: Path
    mask: Path
    size: tuple[int, int]
    grey: bool
    reading: Reading = AS_IT_IS
    placing: Placing | None = None
    rejected: tuple[str, ...] = ()

    def label(self, photo: NDArray[np.uint8], digests: Mapping[Path, str] = UNCHECKED) -> NDArray[np.bool_]:
        """The label bool ``[H, W]`` of the sample's photograph uint8 ``[H, W, 3]``.

        Raises:
            MaskError: a file has not the sha256 that ``digests`` has of it.
        """
        label = self._fitted(self.mask, self.reading, digests)
        if self.placing is None:
            return label
        within, partner = self.placing.inside, self.placing.partner
        inside = find_object(photo) if within is None else self._fitted(within, AS_IT_IS, digests)
        joined = [label] if partner is None else [label, self._fitted(partner, self.reading, digests)]
        dice, across = Dice(self.placing.seed, self.index), self.placing.across
        for _ in range(MADE):
            result = np.any([placed(one, inside, dice, across) for one in joined], axis=0)
            if self.placing.sight.shows(result):
                return np.asarray(result)
        # Where it was drawn it shows.
        return label

    @property
    def masks(self) -> list[Path]:
        """The mask files that the label is made from."""
        partner = self.placing.partner if self.placing else None
        return [self.mask] if partner is None else [self.mask, partner]

    @property
    def label_files(self) -> list[Path]:
        """The files that decide the label beside the photograph: its masks, and the mask of the object."""
        inside = self.placing.inside if self.placing else None
        return self.masks if inside is None else [*self.masks, inside]

    @property
    def files(self) -> list[Path]:
        """All files that are read to paint it."""
        return [self.normal, *self.label_files]

    def _fitted(self, mask: Path, reading: Reading, digests: Mapping[Path, str]) -> NDArray[np.bool_]:
        return fit_mask(read_mask(mask, reading, digests.get(mask)).label, self.size, mask)


class Samples(Sequence[Sample]):
    """Samples that are made when they are asked for, so that a million of them take no memory.

    ``make`` makes the sample of a number, ``numbers`` are those of the samples that are here, rising.
    """

    def __init__(self, make: Callable[[int], Sample], numbers: Sequence[int] | NDArray[np.int64]) -> None:
        self._make, self.numbers = make, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> "Samples": ...
    def __getitem__(self, place: int | slice) -> "Sample | Samples":
        if isinstance(place, slice):
            return Samples(self._make, self.numbers[place])
        return self._make(int(self.numbers[place]))

    def only(self, numbers: NDArray[np.int64]) -> "Samples":
        """Those of some numbers."""
        return Samples(self._make, numbers)
