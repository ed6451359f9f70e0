"""The table of transitions in the bytes that C reads."""

import ctypes

import numpy as np

from stage_rt.kernels.table import ROW, rows
from stage_rt.recipe import Recipe, StepCoefficients


class Coefficients(ctypes.Structure):
    """`stage::Coefficients` of step.h, written out by hand."""

    _fields_ = (
        ("sqrt_recip_abar", ctypes.c_float),
        ("sqrt_recipm1_abar", ctypes.c_float),
        ("posterior_x0", ctypes.c_float),
        ("posterior_xt", ctypes.c_float),
        ("sigma", ctypes.c_float),
        ("mix", ctypes.c_float),
        ("blend", ctypes.c_float),
        ("background_signal", ctypes.c_float),
        ("background_noise", ctypes.c_float),
        ("shared_noise", ctypes.c_uint32),
        ("timestep", ctypes.c_uint32),
        ("guidance", ctypes.c_float),
        ("free", ctypes.c_float),
        ("only", ctypes.c_uint32),
        ("prompt_guidance", ctypes.c_float),
    )


def test_the_table_is_what_c_lays_out_byte_for_byte() -> None:
    for recipe in (Recipe.authors(), Recipe.paper().respaced(77), Recipe.masked(), Recipe.ablated("+mga")):
        coefficients = recipe.coefficients
        expected = (Coefficients * len(coefficients))(*(Coefficients(*c) for c in coefficients))
        assert rows(coefficients).tobytes() == bytes(expected)
    assert ROW.itemsize == ctypes.sizeof(Coefficients)


def test_a_row_carries_the_timestep_of_its_transition() -> None:
    recipe = Recipe.authors().respaced(20)
    assert rows(recipe.coefficients)["timestep"].tolist() == recipe.schedule.timesteps.tolist()
    assert ROW.names == StepCoefficients._fields
    assert np.array_equal(
        rows(recipe.coefficients)["shared_noise"], [c.shared_noise for c in recipe.coefficients]
    )
