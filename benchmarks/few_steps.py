"""What few network calls lose, solver by solver: ``python benchmarks/few_steps.py ENGINE``.

ENGINE is that of ``models/demo``; photographs and labels are those of `labels.py`, the recipe is the model's own, and
every pair is kept as it comes. Of the pairs of all types together, beside all steps, with intervals:

* fill: share of a label's pixels that changed by more than 15 grey levels,
* agreement: IoU of a pair's label with what a segmenter finds that learned rendered defects alone,
* KID: distance of the pairs from rendered defects under the same labels, in that segmenter's features
  (`stage_rt.quality.realism`); ``floor`` is the 95th percentile between halves of the rendered,
* seconds of CPU time a pair. Give it one core: ``OMP_NUM_THREADS=1 taskset -c 0``.

Intervals are twice the standard error over the pairs; KID's is twice the deviation over halves of them, over sqrt(2).
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from labels import DEFECTS, SEED, VISIBLE, scenes
from matplotlib import pyplot as plt
from options import engine_parser, keep
from painting import method_of, painted
from skimage import data

import stage_rt
from stage_rt.machine import cpu_name
from stage_rt.names import SolverName
from stage_rt.quality import realism
from stage_rt.quality.learning import Lesson, find, learn, shares_of
from stage_rt.quality.pictures import Pictures
from stage_rt.training.loop import Device

sys.path.append(str(Path(__file__).parents[1] / "models"))
from make_demo_data import SEEN_COLUMNS, crop

FEW = (10, 15, 20, 30)
CALLS: dict[SolverName, tuple[int, ...]] = {
    "ancestral": (*FEW, 50, 100, 1000),
    "dpmpp-2m": FEW,
    "dpmpp-2m-sde": FEW,
    "unipc": FEW,
}
LEARNED, HALVES = 60, 50
PANELS = {
    "fill": "share of the label painted",
    "agreement": "IoU with what a segmenter finds",
    "kid": "KID from rendered defects",
    "seconds": "s of one core a pair",
}

Greys = np.ndarray


class Judge(NamedTuple):
    """A segmenter that learned rendered defects, on surface that is not painted, and what it is compared with."""

    network: torch.nn.Module
    real: np.ndarray
    device: Device


def pictures(images: Greys, masks: np.ndarray, numbers: list[int]) -> Pictures:
    """Grey images uint8 ``[N, S, S]`` whose labels bool ``[N, S, S]`` show a class each."""
    classes = masks.astype(np.uint8) * np.array(numbers, np.uint8)[:, None, None]
    return Pictures(np.repeat(images[..., None], 3, axis=3), classes, [str(n) for n in range(len(images))])


def learned(steps: int, shown: Pictures) -> Judge:
    """The judge after so many ``steps``; ``shown`` are the rendered defects that pairs are compared with."""
    rng = np.random.default_rng(SEED + 1)
    photo = data.brick()[:, :SEEN_COLUMNS]
    drawn = [
        (DEFECTS[kind](crop(photo, rng), rng), n) for n, kind in enumerate(DEFECTS, 1) for _ in range(LEARNED)
    ]
    images = np.stack([grey for (grey, _), _ in drawn])
    masks = np.stack([mask for (_, mask), _ in drawn])
    part = pictures(np.rint(255 * images).astype(np.uint8), masks, [n for _, n in drawn])
    clean = np.stack([crop(photo, rng) for _ in range(LEARNED)])
    good = pictures(np.rint(255 * clean).astype(np.uint8), np.zeros(clean.shape, np.bool_), [0] * len(clean))
    lesson = Lesson("unet", steps=steps, batch=16, rate=4e-3, crop=64)
    device = Device.best()
    classes = len(DEFECTS)
    shares, none_painted = shares_of(part, classes + 1), [0.0] * classes
    network = learn([part], good, shares, none_painted, lesson, 0, device, lambda share: None)
    return Judge(network, realism.look(network, shown, device).features, device)


def from_real(judge: Judge, rows: np.ndarray) -> realism.Distance:
    """How far features of pairs are from those of what the judge learned, each of which is a defect of its own."""
    return realism.compare(rows, judge.real, np.arange(len(judge.real)))


def agreement(judge: Judge, pairs: Pictures) -> np.ndarray:
    """IoU of every pair's label with the pixels where its class is found, ``[N]``."""
    found = find(judge.network, pairs, judge.device).classes
    wanted = pairs.classes.max(axis=(1, 2))[:, None, None]
    shown, seen = pairs.classes > 0, found == wanted
    return np.asarray((shown & seen).sum(axis=(1, 2)) / (shown | seen).sum(axis=(1, 2)))


def distance(judge: Judge, pairs: Pictures) -> tuple[realism.Distance, float]:
    """KID of the pairs, and its interval."""
    rows = realism.look(judge.network, pairs, judge.device).features
    whole, rng = from_real(judge, rows), np.random.default_rng(SEED)
    halves = [from_real(judge, rng.permutation(rows)[: len(rows) // 2]).distance for _ in range(HALVES)]
    return whole, 2 * float(np.std(halves)) / 2**0.5


def row(engine: Any, judge: Judge, solver: SolverName, calls: int, count: int) -> dict[str, Any]:
    """What a solver makes of every label in so many calls."""
    fills, images, labels, numbers = {}, [], [], []
    began = time.process_time()
    for number, kind in enumerate(DEFECTS, 1):
        good, _, wanted = scenes(kind, count)
        prompt = f"brick+{kind}"
        own = method_of(engine, prompt, calls).recipe
        made = painted(
            engine, good, wanted, method_of(engine, prompt, calls, own.solved(solver)), SEED
        ).images
        change = np.abs(made.astype(np.float64) - good)
        fills[kind] = [
            float((each[mask] > VISIBLE).mean()) for each, mask in zip(change, wanted, strict=True)
        ]
        images.append(made)
        labels.append(wanted)
        numbers += [number] * count
    seconds = (time.process_time() - began) / len(numbers)
    pairs = pictures(np.concatenate(images), np.concatenate(labels), numbers)
    every, agreed = np.concatenate(list(fills.values())), agreement(judge, pairs)
    kid, interval = distance(judge, pairs)
    return {
        "solver": solver,
        "calls": calls,
        "fill": round(float(every.mean()), 3),
        "fill_interval": error(every),
        "agreement": round(float(agreed.mean()), 3),
        "agreement_interval": error(agreed),
        "kid": round(kid.distance, 3),
        "kid_interval": round(interval, 3),
        "kid_floor": round(kid.floor, 3),
        "seconds": round(seconds, 3),
        "empty": int((every < 0.05).sum()),
        **{kind: round(float(np.mean(own)), 3) for kind, own in fills.items()},
    }


def error(values: np.ndarray) -> float:
    return round(2 * float(values.std(ddof=1)) / len(values) ** 0.5, 3)


def main(options: argparse.Namespace) -> None:
    engine = stage_rt.load(options.engine)
    rendered = [scenes(kind, options.count)[1:] for kind in DEFECTS]
    shown = pictures(
        np.concatenate([images for images, _ in rendered]),
        np.concatenate([masks for _, masks in rendered]),
        [n for n in range(1, len(DEFECTS) + 1) for _ in range(options.count)],
    )
    judge = learned(options.lesson, shown)
    rows: list[dict[str, Any]] = []
    result = {"machine": cpu_name(), "backend": engine.spec.backend, "dtype": engine.spec.dtype}
    result |= {
        "pairs_a_type": options.count,
        "rendered_agreement": round(float(agreement(judge, shown).mean()), 3),
        "rows": rows,
    }
    for solver, several in CALLS.items():
        for calls in several:
            if calls <= options.most:
                rows.append(row(engine, judge, solver, calls, options.count))
                print(rows[-1], flush=True)
                keep(result, options.json)
    if options.plot:
        draw(rows, result["rendered_agreement"], options.plot)


def draw(rows: list[dict[str, Any]], agreed: float, path: Path) -> None:
    """A panel a figure; the band is what the most calls give, with its interval."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained", sharex=True)
    last = max(rows, key=lambda each: each["calls"])
    for axis, (name, label) in zip(axes.flat, PANELS.items(), strict=True):
        for place, solver in enumerate(CALLS):
            mine = [each for each in rows if each["solver"] == solver]
            off = [each.get(f"{name}_interval", 0) for each in mine]
            axis.errorbar(
                # Beside one another, so that every interval is seen.
                [each["calls"] * 1.025 ** (place - 1.5) for each in mine],
                [each[name] for each in mine],
                off,
                fmt="o-",
                capsize=3,
                label=solver,
            )
        width = last.get(f"{name}_interval", 0)
        axis.axhspan(last[name] - width, last[name] + width, alpha=0.15, color="tab:blue", lw=0)
        axis.set(ylabel=label, xscale="log", yscale="log" if name == "seconds" else "linear")
        ticks = sorted({each["calls"] for each in rows})
        axis.set_xticks(ticks, [str(calls) for calls in ticks])
        axis.xaxis.minorticks_off()
    axes[0, 1].axhline(agreed, color="grey", ls=":", label="rendered defects themselves")
    axes[1, 0].axhline(last["kid_floor"], color="grey", ls=":", label="between halves of the rendered, 95 %")
    axes[0, 0].legend(fontsize=8)
    for axis in (axes[0, 1], axes[1, 0]):
        # The solvers are told apart beside them.
        axis.legend(handles=[axis.lines[-1]], fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("network calls a pair")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = engine_parser(__doc__)
    parser.add_argument("--count", type=int, default=16, help="pairs a type, solver and number of calls")
    parser.add_argument("--most", type=int, default=1000, help="leave larger numbers of calls out")
    parser.add_argument("--lesson", type=int, default=1500, help="steps of the segmenter")
    parser.add_argument("--plot", type=Path, help="draw the figures against the calls, as a PNG")
    main(parser.parse_args())
