"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os

import torch
from detectron2.checkpoint import DetectionCheckpointer

from lt_det.errors import CheckpointError

_LAST = "last_checkpoint"


class LongTailCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with two differences.

    A file is written beside its final name, flushed to disk and renamed, and only then noted
    in ``last_checkpoint``: a process that dies while saving leaves the previous checkpoint in
    force. And with ``strict_shapes`` a parameter of another shape than the model's is an error;
    Detectron2 leaves it at its random start with a warning, which is right for fine-tuning and
    wrong for resuming and evaluating.

    Args:
        *args, **kwargs: of ``DetectionCheckpointer``.
        strict_shapes: see above; may be set later.
    """

    def __init__(self, *args, strict_shapes: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.strict_shapes = strict_shapes
        self._loading = ""

    def save(self, name: str, *, tag: bool = True, **kwargs) -> None:
        """Write ``<name>.pth``.

        Args:
            name: without suffix.
            tag: make it the one that ``--resume`` continues.
            **kwargs: further entries.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with _replace_file(path) as file:
            torch.save(data, file)
        if tag:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file ``--resume`` continues."""
        with _replace_file(os.path.join(self.save_dir, _LAST)) as file:
            file.write(last_filename_basename.encode())

    def load(self, path: str, *args, **kwargs):
        """As in Detectron2.

        Raises:
            CheckpointError: the file is missing or cannot be read; with ``strict_shapes``, it
                does not fit the model.
        """
        self._loading = path
        try:
            return super().load(path, *args, **kwargs)
        except (EOFError, AssertionError, OSError) as error:
            raise CheckpointError(f"cannot load checkpoint {path}: {error}") from error
        except RuntimeError as error:
            if isinstance(error, CheckpointError) or "PytorchStreamReader" not in str(error):
                raise
            raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        if self.strict_shapes and incompatible.incorrect_shapes:
            raise CheckpointError(_describe_shapes(self._loading, incompatible.incorrect_shapes))
        return incompatible


def _describe_shapes(path: str, shapes: list[tuple]) -> str:
    lines = [
        f"  {name}: {stored} in the file, {wanted} in the model" for name, stored, wanted in shapes
    ]
    hint = ""
    if any("cls_score" in name for name, _, _ in shapes):
        hint = (
            "\nThe classifiers differ: was the checkpoint trained on another number of classes "
            "(MODEL.ROI_HEADS.NUM_CLASSES) or with another loss (MODEL.LT.LOSS.NAME)?"
        )
    more = f"\n  and {len(lines) - 5} more" if len(lines) > 5 else ""
    return f"checkpoint {path} does not fit the model:\n" + "\n".join(lines[:5]) + more + hint


class _replace_file:
    """Context manager: a binary file that takes the place of `path` when all is on disk."""

    def __init__(self, path: str):
        self.path, self.partial = path, f"{path}.partial"

    def __enter__(self):
        self.file = open(self.partial, "wb")
        return self.file

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
        if kind is None:
            os.replace(self.partial, self.path)
        else:
            os.remove(self.partial)
