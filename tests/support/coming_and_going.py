"""Samples that come to slots, are held back, moved and taken away at any step, and what each is by itself."""

import random
from typing import NamedTuple

import numpy as np
from mock_networks import CHANNELS, SIDE, TOKENS, WIDTH, denoiser

from stage_rt.estimator import Condition
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.sampler import sample
from stage_rt.slots import IDLE, Slots

LEVELS = Recipe(name="levels", steps=40, ema_stop=9, only_intervals=((12, 17), (24, 28)))
RECIPES = (
    LEVELS,
    LEVELS.respaced(17),
    LEVELS.guided(2.5),
    LEVELS.respaced(12).contrasted(3),
    LEVELS.contrasted(0).guided(0.5),
    Recipe(name="aware", steps=40, ema_stop=20, only_intervals=()),
)


class Visitor(NamedTuple):
    """One sample, a batch of one."""

    condition: Condition
    clean: np.ndarray
    mask: np.ndarray
    label: np.ndarray | None
    recipe: Recipe
    noise: PhiloxNoise

    def alone(self, dtype="fp32"):
        """Its latent by the CPU's loop."""
        text, adapter, surface = self.condition
        weights = self.recipe.guidance, surface, self.recipe.prompt_guidance
        denoise = denoiser(adapter, text, dtype, *weights)
        return sample(denoise, self.clean, self.mask, recipe=self.recipe, noise=self.noise, label=self.label)

    def enter(self, slots: Slots, slot: int, state=None) -> int:
        return slots.put(
            slot,
            self.condition,
            self.clean,
            self.mask,
            recipe=self.recipe,
            noise=self.noise,
            state=state,
            label=self.label,
        )


def visitor(number: int, adapter: str | None = "a", recipes=RECIPES) -> Visitor:
    rng = np.random.default_rng(number)
    clean = rng.standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    mask = (rng.random((1, 1, SIDE, SIDE)) < 0.4).astype(np.float32)
    label = mask * (rng.random(mask.shape) < 0.5) if number % 3 == 1 else None
    texts = (rng.standard_normal((TOKENS, WIDTH)).astype(np.float32) for _ in range(2))
    context, surface = texts
    noise = PhiloxNoise([900 + number], [number])
    recipe = recipes[number % len(recipes)]
    return Visitor(Condition(context, adapter, surface), clean, mask, label, recipe, noise)


def served(slots: Slots, visitors: list[Visitor], seed: int) -> list[np.ndarray]:
    """What becomes of ``visitors``, let in, held back and moved about by chance; nothing comes out non-finite."""
    choose, waiting, left = random.Random(seed), list(enumerate(visitors)), {}
    counters, guests = [IDLE] * slots.size, [None] * slots.size
    while len(left) < len(visitors):
        for slot in choose.sample(range(slots.size), slots.size):
            if guests[slot] is None and waiting and choose.random() < 0.4:
                number, guest = waiting.pop(0)[:2]
                guests[slot], counters[slot] = (number, guest), guest.enter(slots, slot)
        _move(slots, guests, counters, choose)
        turn = [IDLE if choose.random() < 0.2 else counter for counter in counters]
        after = slots.step(turn, choose.choice([1, 1, 2, 5, 13])).tolist()
        for slot, (before, now) in enumerate(zip(turn, after, strict=True)):
            if before == IDLE:
                continue
            counters[slot] = now
            if now == IDLE:
                latent, finite = slots.take(slot)
                assert finite.tolist() == [True]
                left[guests[slot][0]], guests[slot] = latent, None
    return [left[number] for number in range(len(visitors))]


def _move(slots, guests, counters, choose) -> None:
    """Carry a sample over to an empty slot."""
    filled = [slot for slot in range(slots.size) if guests[slot] is not None]
    empty = [slot for slot in range(slots.size) if guests[slot] is None]
    if filled and empty and choose.random() < 0.2:
        origin, target = choose.choice(filled), choose.choice(empty)
        guests[origin][1].enter(slots, target, slots.take(origin).latent)
        guests[target], guests[origin] = guests[origin], None
        counters[target], counters[origin] = counters[origin], IDLE
