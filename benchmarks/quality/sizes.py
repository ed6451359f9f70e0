"""The two sizes of an evaluation."""

from dataclasses import dataclass

from stage_rt.names import SizeName

from .learning import Lesson


@dataclass(frozen=True)
class Size:
    """``side`` of the pictures in pixels, ``pairs`` a type and source, network ``steps`` a pair, and the lesson."""

    side: int
    pairs: int
    steps: int
    lesson: Lesson


SIZES: dict[SizeName, Size] = {
    "cpu": Size(
        side=192,
        pairs=60,
        steps=100,
        lesson=Lesson("unet", steps=600, batch=12, rate=4e-3, crop=96),
    ),
    "paper": Size(
        side=256,
        pairs=500,
        steps=1000,
        lesson=Lesson("segformer", steps=20000, batch=16, rate=1e-3, crop=256),
    ),
}
