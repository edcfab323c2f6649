"""Where a topic's due jobs go: the ready lists of one queue, as the producer's own transport spells them.

A put leaves this beside the jobs, so that a dispatcher needs no broker settings and moves jobs of queues that it has
never heard of.
"""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Delivery:
    """The ready lists of one topic.

    Attributes:
        steps: the priority steps, ascending; one ready list for each.
        lists: the full Redis keys, any global key prefix included.
        expires_ms: how long each list lives after a delivery (``x-expires``), or None for ever.
    """

    steps: tuple[int, ...]
    lists: tuple[str, ...]
    expires_ms: int | None = None

    @property
    def is_relayed(self) -> bool:
        """Whether they leave this Redis, for a broker elsewhere: there are no ready lists."""
        return not self.lists

    def list_of(self, step: int) -> str:
        """The ready list for a priority step: the one of the greatest step that is not above it."""
        return next(
            (key for own, key in zip(self.steps[::-1], self.lists[::-1], strict=True) if own <= step), self.lists[0]
        )

    def dumps(self) -> str:
        """As it is stored."""
        return json.dumps([self.steps, self.lists, self.expires_ms], separators=(",", ":"))

    @classmethod
    @lru_cache(maxsize=256)
    def loads(cls, text: str | bytes) -> Delivery | None:
        """Read what :meth:`dumps` wrote; None if it is nothing of the kind: any client can put it beside its jobs."""
        try:
            steps, lists, expires_ms = json.loads(text)
            delivery = cls(tuple(map(operator.index, steps)), tuple(lists), expires_ms)
        except (ValueError, TypeError):
            return None
        known = expires_ms is None or type(expires_ms) is int
        return delivery if known and len(steps) == len(lists) and all(type(key) is str for key in lists) else None

    @classmethod
    def relayed(cls) -> Delivery:
        """None: the jobs are handed over to a broker elsewhere, to where each message says."""
        return cls((), ())

    @classmethod
    def plain(cls, key: str) -> Delivery:
        """One ready list, no priorities."""
        return cls((0,), (key,))
