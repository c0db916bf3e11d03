"""Intervals of results and of differences between runs, for tools/report.py."""

from collections.abc import Sequence

from report_html import Html, note
from report_runs import Measure, Run


class Noise:
    """Stub."""

    DIFFERENCE_TEXT = ""

    def interval(self, run: Run, measure: Measure) -> dict:
        return {}

    def difference(self, first: Run, other: Run, measure: Measure) -> dict:
        return {}

    def class_differences(self, first: Run, other: Run, measure: Measure) -> dict:
        return {}

    def explanation(self, runs: Sequence[Run]) -> Html:
        return note("No intervals.")

    def why_no_difference(self, first, others):
        return "No intervals."
