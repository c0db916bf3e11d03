"""Running a model several times on one batch, computing what does not change only once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn


class Replay:
    """Results of calls in their order, computed in the first round and given again in others."""

    def __init__(self):
        self._results: list = []
        self._at: int | None = None

    def wrap(self, call):
        """`call`, or its result of the first round."""

        def replaying(*args, **kwargs):
            if self._at is None:
                self._results.append(call(*args, **kwargs))
                return self._results[-1]
            self._at += 1
            return self._results[self._at - 1]

        return replaying

    def rounds(self, items: Sequence) -> Iterator:
        """`items`, the first one as a first round, what follows as rounds that repeat it."""
        for k, item in enumerate(items):
            self._at = 0 if k else None
            if not k:
                self._results.clear()
            yield item


@contextlib.contextmanager
def replayed(calls: Sequence[tuple[object, str]]) -> Iterator[Replay]:
    """Methods that give again, when called again, what they gave before.

    Args:
        calls: (object, name of its method); results depend on the input alone and are not written
            to by whoever gets them.
    """
    replay = Replay()
    try:
        for owner, name in calls:
            setattr(owner, name, replay.wrap(getattr(owner, name)))
        yield replay
    finally:
        for owner, name in calls:
            owner.__dict__.pop(name, None)


def before_logits(model: nn.Module) -> list[tuple[object, str]]:
    """The parts of a model that come before its logits."""
    found = [(model.backbone, "forward")]
    head = getattr(model, "sem_seg_head", None)
    if head is not None:
        found.append((head, "layers"))
    if getattr(model, "proposal_generator", None) is not None:
        found.append((model.proposal_generator, "forward"))
    heads = getattr(model, "roi_heads", None)
    for name in ("box_pooler", "box_head", "pooler", "res5"):
        part = getattr(heads, name, None)
        parts = part if isinstance(part, nn.ModuleList) else [part]
        found += [(p, "forward") for p in parts if p is not None]
    return found
