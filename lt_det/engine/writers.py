"""What a run prints and writes."""

from __future__ import annotations

import os

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)


class GradientRatioPrinter(CommonMetricPrinter):
    """Detectron2's line of progress, and one with the gradient ratio of each group."""

    def write(self):
        """Print."""
        super().write()
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return
        ratios = {
            name[len("grad_ratio/") :]: value
            for name, (value, _) in storage.latest().items()
            if name.startswith("grad_ratio/")
        }
        if ratios:
            text = "  ".join(f"{name}: {value:.3g}" for name, value in ratios.items())
            self.logger.info(" iter: %d  gradient ratio  %s", storage.iter, text)


class MetricsFile(EventWriter):
    """Detectron2's ``JSONWriter``, opened when the first line is written.

    A resumed run first takes out of the file what the killed one wrote after its checkpoint.
    """

    def __init__(self, path: str):
        self.path = path
        self._writer = None

    def write(self):
        """Append."""
        self._writer = self._writer or JSONWriter(self.path)
        self._writer.write()

    def close(self):
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def build_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    """Terminal, ``metrics.json`` and TensorBoard."""
    return [
        GradientRatioPrinter(max_iter),
        MetricsFile(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
