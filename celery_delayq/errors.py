"""Everything that celery_delayq raises on its own account. One root, so that ``except DelayQError`` catches all."""

from __future__ import annotations


class DelayQError(Exception):
    """Something went wrong with a delayed task; the message says what and what to do."""


class ImproperlyConfigured(DelayQError):
    """A setting, the broker or the app does not allow what was asked."""


class Outdated(DelayQError):
    """The keys in Redis are of a later version than this celery_delayq knows. Nothing was changed.

    Attributes:
        place: what the keys begin with.
        version: theirs.
        known: the latest that we know.
    """

    def __init__(self, place: str, version: int, known: int) -> None:
        super().__init__(place, version, known)
        self.place = place
        self.version = version
        self.known = known

    def __str__(self) -> str:
        return (
            f"the keys under {self.place} are of version {self.version}, and this celery_delayq knows version "
            f"{self.known}: upgrade celery_delayq here, or use another prefix (delayq_prefix; prefix= of a DelayQueue)"
        )


class AlreadyScheduled(DelayQError):
    """A job of this id waits already, and the caller did not say to keep or to replace it.

    Attributes:
        task_id: the id that is taken.
    """

    def __init__(self, task_id: str) -> None:
        # Exactly one argument goes to Exception, so that the error survives pickling between processes.
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return (
            f"task id {shortened(self.task_id)} waits already; "
            'pass on_conflict="keep" to leave it or on_conflict="replace" to overwrite it'
        )


class LeaseLost(DelayQError):
    """A job is no longer the caller's: it was given to another, deleted, or put anew. Nothing of it was touched.

    Attributes:
        ids: which jobs; of several that were asked for, the others are done.
    """

    def __init__(self, *ids: str) -> None:
        super().__init__(*ids)
        self.ids = ids

    def __str__(self) -> str:
        if len(self.ids) == 1:
            named = f"job {shortened(self.ids[0])} is"
        else:
            named = f"{len(self.ids)} jobs are, {shortened(self.ids[0])} among them," if self.ids else "the job is"
        return (
            f"{named} no longer yours: its lease ran out and another has it, or it was deleted or put anew; "
            "take longer leases, or extend them while you work"
        )


class Unattended(DelayQError):
    """No dispatcher lives, and a put was to be refused then. Nothing was stored."""


class ReplicasMissing(DelayQError):
    """Fewer replicas than ``delayq_wait_replicas`` have acknowledged a put in time.

    The job is stored, and will be handed over; only a failover in this moment may lose it. To put it again does no
    harm.

    Attributes:
        acknowledged: how many replicas have it for certain.
        wanted: how many were to have it.
    """

    def __init__(self, acknowledged: int, wanted: int) -> None:
        super().__init__(acknowledged, wanted)
        self.acknowledged = acknowledged
        self.wanted = wanted

    def __str__(self) -> str:
        return (
            f"stored, but only {self.acknowledged} of {self.wanted} replicas have acknowledged it in time; "
            "look after Redis's replicas, or lower delayq_wait_replicas"
        )


class ImportRefused(DelayQError):
    """A line of an export cannot be imported.

    Attributes:
        line: its number; the first is 1.
        reason: what is wrong with it.
        is_conflict: a task of its id waits already; else it cannot be read.
    """

    def __init__(self, line: int, reason: str, is_conflict: bool = False) -> None:
        super().__init__(line, reason, is_conflict)
        self.line = line
        self.reason = reason
        self.is_conflict = is_conflict

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def shortened(value: object, limit: int = 80) -> str:
    """``repr(value)``, cut to *limit* characters: an id may be 10 kB long, a message should not be."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
