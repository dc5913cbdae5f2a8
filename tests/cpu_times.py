"""A plugin of pytest that records which tests are slow: ``make slow-tests`` writes ``tests/slow_tests.txt``.

A test function is slow when all its cases together take more than ``LIMIT``, or the set-up of a fixture that
it shares with others does. Seconds are those of the CPU, with processes that a test starts: what else a
machine does counts less.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT = 0.2  # seconds
RECORD = Path(__file__).with_name("slow_tests.txt")
HEADER = (
    f"# Tests that take more than {LIMIT} s of CPU, which `make check` leaves out; by `make slow-tests`.\n"
)


def slow_tests() -> set[str]:
    """Return the recorded functions, ``FILE::FUNCTION``."""
    return {line for line in RECORD.read_text(encoding="utf-8").splitlines() if not line.startswith("#")}


def function_of(nodeid: str) -> str:
    """Return the function of a test, without the case."""
    return nodeid.partition("[")[0]


def cpu_seconds() -> float:
    """Return what this process and those that it waited for took so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class CpuTimes:
    """Seconds by test function; the set-up of fixtures that tests share is counted by fixture."""

    def __init__(self) -> None:
        self.tests: Counter[str] = Counter()
        self.fixtures: dict[str, float] = {}
        self.needs: dict[str, list[str]] = {}
        self._test = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Function) -> Iterator[None]:
        """Measure the set-up of a test."""
        self._test = function_of(item.nodeid)
        found = item._fixtureinfo.name2fixturedefs
        self.needs[self._test] = [_name(all_of[-1]) for all_of in found.values()]
        yield from self._measured()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Iterator[None]:
        """Measure a test."""
        yield from self._measured()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        """Measure the set-up of a fixture that is shared."""
        begin = cpu_seconds()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                seconds, name = cpu_seconds() - begin, _name(fixturedef)
                self.fixtures[name] = max(seconds, self.fixtures.get(name, 0))
                self.tests[self._test] -= seconds

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Hand what a worker measured to the process that started it; write the record in that one.

        A run that was stopped leaves the record as it is; one of some files that of the others.
        """
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["cpu_times"] = (dict(self.tests), self.fixtures, self.needs)
        elif exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            files = {_file(test) for test in self.tests}
            others = {t for t in slow_tests() if _file(t) not in files and Path(_file(t)).exists()}
            slow = others | {test for test in self.tests if self._seconds(test) > LIMIT}
            RECORD.write_text(HEADER + "".join(f"{test}\n" for test in sorted(slow)), encoding="utf-8")

    def pytest_testnodedown(self, node: object) -> None:
        """Take what a worker measured."""
        tests, fixtures, needs = getattr(node, "workeroutput", {}).get("cpu_times", ({}, {}, {}))
        self.tests.update(tests)
        for name, seconds in fixtures.items():
            self.fixtures[name] = max(seconds, self.fixtures.get(name, 0))
        self.needs |= needs

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List the tests and shared fixtures that take most."""
        terminalreporter.section("seconds of CPU")
        for name, seconds in (self.tests + Counter(self.fixtures)).most_common(60):
            terminalreporter.write_line(f"{seconds:8.2f} {name}")

    def _measured(self) -> Iterator[None]:
        begin = cpu_seconds()
        try:
            return (yield)
        finally:
            self.tests[self._test] += cpu_seconds() - begin

    def _seconds(self, test: str) -> float:
        return max(self.tests[test], *(self.fixtures.get(name, 0) for name in self.needs[test]), 0)


def _file(test: str) -> str:
    return test.partition("::")[0]


def _name(fixturedef: pytest.FixtureDef[object]) -> str:
    return f"{fixturedef.baseid}:{fixturedef.argname}"


def pytest_configure(config: pytest.Config) -> None:
    """Begin to measure."""
    config.pluginmanager.register(CpuTimes(), "cpu_times")
