"""Which engine `stage-rt build --backend auto` keeps; how it is asked for is in `tests/cli/test_build.py`."""

import math

import pytest

from stage_rt.engines import auto as module
from stage_rt.engines.auto import CANDIDATES, Candidate, Judged, candidates, fastest, judge, told
from stage_rt.errors import InputError, MissingExtraError, ParityError
from stage_rt.timing import Timing

ORT, OPENVINO, BF16 = CANDIDATES


def judged(candidate, milliseconds, error=0.0):
    return Judged(candidate, Timing(milliseconds / 1e3, 0, 0, 1), error)


def test_both_libraries_are_measured_on_the_same_inputs(engine_folder, openvino_engine):
    first, second = judge({ORT: engine_folder, OPENVINO: openvino_engine})
    assert (first.candidate, second.candidate) == (ORT, OPENVINO)
    assert first.error == 0
    assert 0 < second.error < 1e-5
    assert all(one.passed and 0 < one.seconds.low <= one.seconds.median for one in (first, second))


def test_the_fastest_within_its_tolerance_is_kept():
    found = [judged(ORT, 80), judged(OPENVINO, 90, 1e-6), judged(BF16, 40, 0.01)]
    assert fastest(found).candidate == BF16
    assert told(found, fastest(found), 8) == (
        "a UNet call of 8 takes onnxruntime fp32 80 ms, openvino fp32 90 ms, openvino bf16 40 ms: kept openvino bf16"
    )


@pytest.mark.parametrize("error", [0.06, math.nan, math.inf])
def test_one_that_is_too_far_off_is_not_kept_however_fast(error):
    found = [judged(ORT, 80), judged(BF16, 1, error)]
    assert fastest(found).candidate == ORT
    assert "openvino bf16 1 ms (beyond its tolerance): kept onnxruntime fp32" in told(found, found[0], 8)
    with pytest.raises(ParityError, match="stage-rt verify"):
        fastest(found[1:])


def test_what_is_not_installed_or_cannot_be_computed_is_left_out(monkeypatch):
    def refused(*names):
        def choose(backend, dtype, targets):
            if backend in names or dtype in names:
                raise MissingExtraError(f"no {backend}")

        monkeypatch.setattr(module, "choose", choose)

    refused("openvino")
    assert candidates(None) == [ORT]
    refused("bf16")
    assert candidates(None) == [ORT, OPENVINO]
    refused("onnxruntime")
    assert candidates(["fp32"]) == [OPENVINO]
    refused("openvino", "onnxruntime")
    with pytest.raises(MissingExtraError, match="no onnxruntime"):
        candidates(None)


def test_a_gpu_and_a_dtype_that_nobody_builds_are_told_of(monkeypatch):
    with pytest.raises(InputError, match="builds fp32 and bf16"):
        candidates(["fp16"])
    monkeypatch.setattr(module, "_has_gpu", lambda: True)
    with pytest.raises(InputError, match="this machine has a GPU: name its backend"):
        candidates(None)


def test_a_candidate_is_named_by_backend_and_dtype():
    assert str(Candidate("openvino", "bf16")) == "openvino bf16"
