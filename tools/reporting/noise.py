"""Intervals of results and of differences between runs, for tools/report.py."""

from collections.abc import Sequence

import numpy as np

from lt_det.errors import LtDetError
from lt_det.evaluation.bootstrap import (
    ALL,
    FALSE_DISCOVERY_RATE,
    MIN_IMAGES,
    Comparison,
    Difference,
    bootstrap_groups,
    metric_name,
    paired_bootstrap,
)
from lt_det.evaluation.per_image import PerImage, read_images_of_record
from reporting.html import Html, element, note
from reporting.runs import Measure, Run, said_of

RESAMPLES = 1000
CONFIDENCE = 0.95  # the texts say so


class Noise:
    """What `lt_det.evaluation.bootstrap` says of runs; each is computed once.

    Intervals of a run come from its record if they are there, else from the files that its
    evaluation has left; differences always come from these files.
    """

    def __init__(self):
        self._images: dict = {}
        self._found: dict = {}

    def interval(self, run: Run, measure: Measure) -> dict[str, tuple[float, float]]:
        """Letter or "all" -> ends of its interval in percent; {} if there are none."""
        return self._once(("interval", run.label, measure.column), self._interval, run, measure)

    def comparison(self, first: Run, other: Run, measure: Measure) -> Comparison | None:
        """Differences between two runs, `other` minus `first`; None: see `why_no_comparison`."""
        key = ("comparison", first.label, other.label, measure.column)
        found = self._once(key, self._comparison, first, other, measure)
        return None if isinstance(found, str) else found

    def why_no_comparison(self, first: Run, other: Run, measure: Measure) -> str | None:
        """What is missing for a comparison; None: nothing."""
        self.comparison(first, other, measure)
        found = self._found["comparison", first.label, other.label, measure.column]
        return found if isinstance(found, str) else None

    def explanation(self, runs: Sequence[Run]) -> list[Html]:
        """What the intervals are, and why some are not there."""
        missing = []
        for run in runs:
            reason = self._read(run) if run.measures else None
            if isinstance(reason, str) and not any(self.interval(run, m) for m in run.measures):
                missing.append((run, f"no intervals: {reason}"))
        parts = [note(text) for text in said_of(missing, runs)]
        if len(missing) < len(runs):
            text = (
                f"Small numbers: 95 % intervals of a bootstrap over the test images ({RESAMPLES:,} "
                "resamples unless the record says otherwise). They cover the choice of the images, "
                "not the seed of the training."
            )
            parts.insert(0, element("p", text, class_="muted"))
        return parts

    def _once(self, key, make, *args):
        if key not in self._found:
            self._found[key] = make(*args)
        return self._found[key]

    def _read(self, run: Run) -> dict[str, PerImage] | str:
        """Part of the record -> what its images contribute; a text says what is missing."""
        if run.label not in self._images:
            try:
                found = read_images_of_record(run.inference, run.record)
                self._images[run.label] = {images.part: images for images in found}
            except LtDetError as error:
                self._images[run.label] = str(error)
        return self._images[run.label]

    def _interval(self, run: Run, measure: Measure) -> dict:
        intervals = run.record.get("intervals") or {}
        recorded = intervals.get("metrics", {}).get(measure.part)
        if recorded and intervals.get("confidence") == CONFIDENCE:
            names = {letter: metric_name(measure.part, letter) for letter in (ALL, *measure.groups)}
            found = {letter: recorded.get(name) for letter, name in names.items()}
            return {g: tuple(ends) for g, ends in found.items() if ends and None not in ends}
        images = self._read(run)
        if isinstance(images, str) or measure.part not in images:
            return {}
        found = bootstrap_groups(
            images[measure.part], run.groups, resamples=RESAMPLES, confidence=CONFIDENCE
        )
        return {g: (i.low, i.high) for g, i in found.items() if not np.isnan(i.low)}

    def _comparison(self, first: Run, other: Run, measure: Measure) -> Comparison | str:
        if first.record["protocol"] != other.record["protocol"]:
            return f"{first.label} and {other.label} were measured under different protocols"
        sides = [self._read(run) for run in (first, other)]
        for run, side in zip((first, other), sides, strict=True):
            if isinstance(side, str):
                return f"{run.label}: {side}"
            if measure.part not in side:
                return f"{run.label} has no {measure.title}"
        a, b = (side[measure.part] for side in sides)
        try:
            return paired_bootstrap(a, b, first.groups, resamples=RESAMPLES, confidence=CONFIDENCE)
        except LtDetError as error:
            return f"{first.label} and {other.label}: {error}"


def verdict(found: Difference) -> str:
    """ "beyond noise", "within noise" or why it cannot be told, and what the interval lacks."""
    if not found.judged:
        return "too few test images to judge"
    words = "beyond noise" if found.beyond_noise else "within noise"
    if found.narrow:
        words += (
            f" ({found.few_images} of {found.classes} classes have fewer than {MIN_IMAGES} test "
            "images: the interval is somewhat narrow)"
        )
    return words


def class_verdicts(found: Comparison) -> str:
    """How many classes differ beyond noise, and how many would by chance."""
    judged, beyond = int(found.judged.sum()), int(found.beyond_noise.sum())
    if not judged:
        return "No class is held by enough test images to say whether its difference is noise."
    by_chance, kept = (1 - CONFIDENCE) * judged, int(found.controlled.sum())
    return (
        f"{beyond} of {judged} classes that enough test images hold differ beyond noise, where "
        f"{by_chance:.1f} would by chance if no class differed; {kept} remain if at most "
        f"{FALSE_DISCOVERY_RATE:.0%} of those named may be by chance (marked with *)."
    )
