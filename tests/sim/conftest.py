"""Adds up what the seeded runs of a test session met, wherever they ran, and prints it at the end."""

from __future__ import annotations

import pytest

from tests.sim import fleet_runs


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total = fleet_runs.Coverage()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == fleet_runs.COVERAGE and report.when == "call":
                    total.join(fleet_runs.Coverage.of(value))
    if total.runs:
        terminalreporter.write_line(str(total))
