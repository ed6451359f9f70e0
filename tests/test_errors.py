"""An error's sentence, its two halves, and that they survive the way between processes."""

import copy
import pickle
import re

import pytest

from stage_rt import errors
from stage_rt.errors import EngineError, ExitCode, FailedSamplesError, StageError, unforeseen

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StageError)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_and_a_remedy_are_one_sentence(kind: type[StageError]) -> None:
    error = kind("`x` is broken", "mend `x`")
    assert (str(error), error.problem, error.remedy) == (
        "`x` is broken: mend `x`",
        "`x` is broken",
        "mend `x`",
    )
    assert str(kind("`x` is broken: mend `x`")) == "`x` is broken: mend `x`"
    assert kind("`x` is broken").remedy is None


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("remedy", ["mend it", None])
def test_both_halves_survive_a_copy(copied, remedy) -> None:
    again = copied(EngineError("it is broken", remedy))
    assert type(again) is EngineError
    assert (again.problem, again.remedy) == ("it is broken", remedy)


def test_an_error_that_nobody_foresaw_keeps_the_line_of_ours_that_it_came_from() -> None:
    with pytest.raises(AttributeError) as raised:
        unforeseen(None)  # type: ignore[arg-type]
    told = unforeseen(raised.value)
    assert re.fullmatch(r"AttributeError: .*'__traceback__' \(in `errors\.py`, line \d+\)", told)
    raised.value.__traceback__ = None
    assert unforeseen(raised.value) == told
    assert unforeseen(ValueError("nobody's\nfault")) == "ValueError: nobody's"


def test_each_class_owns_an_exit_code() -> None:
    assert {kind.exit_code for kind in KINDS} == {ExitCode.INPUT, ExitCode.BROKEN, ExitCode.FAILED_SAMPLES}
    assert FailedSamplesError.exit_code == 4
