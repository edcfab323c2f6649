"""The settings of ``app.conf`` that begin with ``delayq_``, validated whole, as one frozen object.

The README's table is made from the fields below, by :func:`table`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import ImproperlyConfigured, shortened

PREFIX = "delayq_"


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("must be True or False")


def _seconds(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    raise ValueError("must be a number of seconds, 0 or more")


def _interval(value: object) -> float:
    if _seconds(value) < 0.05:
        raise ValueError("must be 0.05 seconds or more")
    return _seconds(value)


def _attempts(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000:
        return value
    raise ValueError("must be a whole number from 1 to 1000")


def _lease(value: object) -> float:
    if 1 <= _seconds(value) <= 86_400:
        return _seconds(value)
    raise ValueError("must be from 1 to 86400 seconds")


def _url(value: object) -> str | None:
    if value is None or (isinstance(value, str) and "://" in value):
        return value
    raise ValueError("must be a URL of a Redis, as redis://, rediss://, sentinel:// or redis-cluster://")


def _batch(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000:
        return value
    raise ValueError("must be a whole number from 1 to 100000")


def _shards(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256:
        return value
    raise ValueError("must be a whole number from 1 to 256")


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("must be a whole number, 0 or more")


def _name(value: object) -> str:
    if isinstance(value, str) and value and not set(value) & set("{}"):
        return value
    raise ValueError("must be a non-empty string without { and }")


def _position(value: object) -> str:
    if value in ("back", "front"):
        return str(value)
    raise ValueError('must be "back" or "front"')


def _fallback(value: object) -> str | None:
    if value is None or value == "native":
        return value
    raise ValueError('must be None or "native"')


def _ceilings(value: object) -> Mapping[str, int] | None:
    if value is None:
        return None
    wrong = ValueError("must map names of queues to whole numbers of 1 or more")
    if not isinstance(value, Mapping):
        raise wrong
    for queue, limit in value.items():
        if not isinstance(queue, str) or isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise wrong
    return dict(value)


def _paths(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    paths = [str(path) for path in given if isinstance(path, (str, os.PathLike)) and str(path)]
    if not paths or len(paths) < len(given):
        raise ValueError("must be the path of a file, or a list of such paths")
    return tuple(paths)


def _setting(default: Any, read: Callable[[object], Any], help: str, *, shown: bool = True) -> Any:
    return field(default=default, metadata={"read": read, "help": help}, repr=shown)


def _masked(value: object) -> str:
    """A value for an error message, without the password that a URL may hold."""
    return re.sub(r"//[^/@]*@", "//**@", shortened(value))


@dataclass(frozen=True)
class Settings:
    """What a user may set on ``app.conf``, each with the prefix ``delayq_``."""

    intercept: bool = _setting(
        True, _truth, "Plain `apply_async(countdown=…)`, `retry` and so on wait in Redis too, not only `apply_at`."
    )
    min_delay: float = _setting(0.0, _seconds, "Seconds; shorter delays are left to stock Celery.")
    prefix: str = _setting("delayq", _name, "First part of every key of ours, behind the broker's `global_keyprefix`.")
    dispatch: bool = _setting(
        True, _truth, "Workers move due tasks to their queues. `celery worker --no-delayq-dispatch` says no for one."
    )
    batch_size: int = _setting(1000, _batch, "Tasks that one script call moves at most.")
    max_poll_interval: float = _setting(
        1.0,
        _interval,
        "Seconds; the dispatchers together look at least this often, even if nobody wakes them; one that was killed "
        "is replaced after 0.9 to 1.2 times as long.",
    )
    ready_position: str = _setting(
        "back", _position, 'A due task goes behind the tasks that are ready already ("back") or before them ("front").'
    )

    ready_limit: Mapping[str, int] | None = _setting(
        None,
        _ceilings,
        '`{"queue": 1000}`: due tasks of that queue wait while so many messages are ready for its workers.',
    )
    store_url: str | None = _setting(
        None,
        _url,
        "The Redis in which delayed tasks wait, if that is not the broker: `redis://`, `rediss://`, `sentinel://`, "
        "`redis-cluster://host:port,host:port` …",
        shown=False,  # it may hold a password
    )
    shards: int = _setting(
        1,
        _shards,
        "Tasks at `delayq_store_url` are spread over so many shards, by their ids. Can be raised at any time.",
    )
    lease: float = _setting(
        60.0, _lease, "Seconds that a dispatcher has for a task to reach a broker that is not the store."
    )
    max_attempts: int = _setting(
        16, _attempts, "So often such a hand-over is tried; then the task lies among the dead letters."
    )
    wait_replicas: int = _setting(
        0, _count, "So many replicas of Redis must have a delayed task, or publishing it raises `ReplicasMissing`."
    )

    adopt: bool = _setting(
        True,
        _truth,
        "Workers put delayed tasks that reach them all the same, as from producers without celery_delayq, into Redis; "
        "not with `delayq_intercept` off.",
    )
    fallback: str | None = _setting(
        None,
        _fallback,
        'When no dispatcher lives: None stores delayed tasks all the same, "native" publishes them the stock way.',
    )

    rules: tuple[str, ...] | None = _setting(
        None,
        _paths,
        "A file of rules, or a list of files: workers watch for events and make tasks of them (docs/rules.md).",
    )

    @classmethod
    def read(cls, conf: Mapping[str, Any]) -> Settings:
        """Take the settings out of *conf*, Celery's ``app.conf`` or any mapping.

        Raises:
            ImproperlyConfigured: an unknown setting or an unusable value.
        """
        known = {f"{PREFIX}{f.name}": f for f in fields(cls)}
        # Celery looks CELERY_DELAYQ_… up as delayq_…, but lists it by its full name; and it knows its namespace only
        # once it has loaded the configuration, which the listing makes it do.
        listed = [str(key).lower() for key in conf]
        namespace = str(getattr(conf, "prefix", None) or "").lower()
        values = {}
        for key in {name.removeprefix(namespace) for name in listed}:
            if not key.startswith(PREFIX):
                continue
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ImproperlyConfigured(f"unknown setting {key}; did you mean {near}?")
            value = conf[key]
            try:
                values[known[key].name] = known[key].metadata["read"](value)
            except ValueError as error:
                raise ImproperlyConfigured(f"{key} {error}, not {_masked(value)}") from None
        return cls(**values)


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for f in fields(Settings):
        rows.append(f"| `{PREFIX}{f.name}` | `{_written(f.default)}` | {f.metadata['help']} |")
    return "\n".join(rows)


def _written(value: object) -> str:
    """As a user would write it."""
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)
