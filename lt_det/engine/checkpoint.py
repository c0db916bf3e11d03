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
    force. And with ``strict`` the file must fit the model: every parameter there, of the same
    shape, and trained with the same loss. Detectron2 leaves what does not fit at its random
    start with a warning, which is right for fine-tuning and wrong for resuming and evaluating.

    Args:
        *args: of ``DetectionCheckpointer``.
        loss: name of the model's loss; kept in the file.
        strict: see above; may be set later.
        **kwargs: of ``DetectionCheckpointer``.
    """

    def __init__(self, *args, loss: str = "", strict: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss = loss
        self.strict = strict
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
        data = {"model": self.model.state_dict(), "loss": self.loss}
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
            CheckpointError: the file is missing or cannot be read; with ``strict``, it does not
                fit the model.
        """
        self._loading = path
        try:
            return super().load(path, *args, **kwargs)
        except (AssertionError, OSError) as error:
            raise CheckpointError(f"cannot load checkpoint {path}: {error}") from error

    def _load_file(self, filename: str):
        try:
            loaded = super()._load_file(filename)
        except Exception as error:  # pickle, zip and torch each have their own for a bad file
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise CheckpointError(f"cannot read checkpoint {filename} ({reason})") from error
        if not isinstance(loaded.get("model"), dict):
            raise CheckpointError(f"{filename} is not a checkpoint: it holds no parameters")
        return loaded

    def _load_model(self, checkpoint):
        stored = checkpoint.get("loss", "")
        if self.strict and stored and self.loss and stored != self.loss:
            raise CheckpointError(
                f"checkpoint {self._loading} was trained with the loss {stored}, but "
                f"MODEL.LT.LOSS.NAME is {self.loss}: its scores would mean nothing"
            )
        incompatible = super()._load_model(checkpoint)
        if self.strict and incompatible.incorrect_shapes:
            raise CheckpointError(_describe_shapes(self._loading, incompatible.incorrect_shapes))
        if self.strict and incompatible.missing_keys:
            missing = incompatible.missing_keys
            raise CheckpointError(
                f"checkpoint {self._loading} lacks {len(missing)} of the model's parameters: "
                f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. "
                "Is it the checkpoint of this configuration?"
            )
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
