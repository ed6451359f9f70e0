"""Tests as a check of this machine: ``python -P unskipped.py ARGUMENTS`` is pytest, and fails if one is skipped.

On a machine without a GPU a skipped test costs nothing; here it would stand for a check that was never made.
"""

import sys

import pytest


class Outcomes:
    """How many tests passed, and why any was skipped."""

    def __init__(self) -> None:
        self.passed = 0
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test, or what comes before or after it, has ended."""
        self.passed += report.when == "call" and report.passed
        self._skips(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file has been read, which may skip all its tests."""
        self._skips(report)

    def _skips(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped:
            # A place and a reason, or for a failure that is expected a text.
            told = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
            self.skipped.append(" ".join(str(told).removeprefix("Skipped: ").split()))

    @property
    def lacking(self) -> str | None:
        """What keeps them from being a check, None for nothing."""
        if self.skipped:
            return f"{len(self.skipped)} skipped: {self.skipped[0]}"
        return None if self.passed else "no test was run"


def main() -> None:
    outcomes = Outcomes()
    code = int(pytest.main(sys.argv[1:], plugins=[outcomes]))
    if outcomes.lacking and code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        # To where the log of a part ends, whose last line tells why it failed.
        print(outcomes.lacking)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
