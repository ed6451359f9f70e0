"""The gallery: photographs of good parts by names that can be sent, and as they are now.

Files come, go and are damaged while a server runs for months; one of them concerns nobody who asks for others.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from stage_rt.errors import ImageError, InputError, printable
from stage_rt.files import identity
from stage_rt.images.inputs import Header, check_image, read_header, read_image
from stage_rt.run.checks import Checks
from stage_rt.run.sample import readable
from stage_rt.serve.pairs import Room

Answer = TypeVar("Answer")


class GoneError(InputError):
    """A photograph was there when the server started, and is not any more."""


class Gallery:
    """Photographs by their names; ``paths`` are all files, whether they can be used or not.

    A name that is no text on the disk is told with its bytes, ``gut_\\xfc.png``, so that it is the same at every
    start, as jobs need it, whatever other files there are.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.paths: Mapping[str, Path] = _named(files)
        self._headers = Checks()
        self._damaged: dict[str, tuple[int, int, int] | None] = {}

    def check(self, known: Path, room: Room, tell: Callable[[str], None], wanted: Callable[[], bool]) -> None:
        """Decode every photograph, and leave those out that cannot be until their files are others.

        Args:
            known: file in which it is kept what decoded, so that the next start decodes none of it again.
            room: where photographs are while they are decoded.
            tell: is told in a sentence of each that is left out.
            wanted: whether to go on.
        """

        def decoded(path: Path) -> bool:
            header = read_header(path)
            with room.taken(header.width * header.height):
                check_image(path)
            return True

        checks = Checks(known)
        for name, path in self.paths.items():
            if not wanted():
                break
            try:
                checks.of(path, "decodes", decoded)
            except (ImageError, OSError) as error:
                self._damaged[name] = identity(path)
                tell(f"a photograph is left out of the gallery: {printable(str(error))}")
        # It only saves time.
        with suppress(OSError):
            checks.save()

    def headers(self) -> dict[str, Header]:
        """Sizes of all photographs that can be used now."""
        found = {}
        for name, path in self.paths.items():
            if self._known_damaged(name, path):
                continue
            with suppress(ImageError, OSError):
                found[name] = Header(*self._headers.of(path, "header", read_header))
        return found

    def _known_damaged(self, name: str, path: Path) -> bool:
        """Whether a photograph was found to be damaged, and is the same file still."""
        found = self._damaged.get(name)
        return found is not None and found == identity(path)

    def path(self, name: str) -> Path:
        """The file of a photograph; a name is looked up and never made a path.

        Raises:
            InputError: there is none.
        """
        path = self.paths.get(name)
        if path is None:
            raise InputError(f"there is no photograph {name!r} in the gallery")
        return path

    def read(self, name: str, how: Callable[[Path], Answer]) -> Answer:
        """What ``how`` reads from the file of a photograph.

        Raises:
            GoneError: the file is not there any more.
            ImageError: as ``how`` does, or it cannot be read.
            InputError: there is no photograph of that name.
        """
        path = self.path(name)
        try:
            if self._known_damaged(name, path):
                # Its header may be whole; this says what is not.
                read_image(path)
            return how(path)
        except (ImageError, OSError) as error:
            if not os.path.exists(path):
                raise GoneError(
                    f"photograph {name!r} is not there any more", "put it back or choose another"
                ) from error
            if isinstance(error, ImageError):
                raise
            raise ImageError(
                f"photograph {name!r} cannot be read ({error.strerror})", "mend that or choose another"
            ) from error


def _named(files: Sequence[Path]) -> dict[str, Path]:
    texts = {path.name for path in files if readable(path) == path.name}
    named: dict[str, Path] = {}
    for path in files:
        name = path.name
        if name not in texts:
            name = os.fsencode(name).decode(errors="backslashreplace")
            while name in texts or name in named:
                name = f"\\{name}"
        named[name] = path
    return named
