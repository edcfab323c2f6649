"""Every key and channel that celery_delayq uses in Redis, and nothing else makes one.

All keys of one shard carry one hash tag, so that a Redis Cluster keeps them together. The topic comes last: whatever
characters it holds, no two topics and no two kinds can meet.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The version of what all these keys hold and of the scripts that read and write them, as docs/lua.md tells it. Greater
#: when somebody who knows the one before would do harm.
VERSION = 1


@dataclass(frozen=True)
class Keys:
    """Names for one broker, one prefix and one database.

    Attributes:
        prefix: the setting ``delayq_prefix``.
        global_prefix: the broker's ``global_keyprefix``. Kombu's client would put it before the first key of a script
            only, so we do it, for all.
        database: number of the Redis database. It is part of the channel, since channels ignore databases.
        shard: number of the shard; its hash tag keeps the keys of one shard together.
        queue: the topic of a queue that has all its keys for itself, apart from Celery's; "": these are Celery's. Part
            of the hash tag, so it may hold no braces.
    """

    prefix: str
    global_prefix: str = ""
    database: int = 0
    shard: int = 0
    queue: str = ""

    @property
    def beginning(self) -> str:
        """What all keys and channels begin with."""
        tag = f"{self.shard}:{self.queue}" if self.queue else f"{self.shard}"
        return f"{self.global_prefix}{self.prefix}:{{{tag}}}:"

    def _key(self, name: str) -> str:
        return f"{self.beginning}{name}"

    @property
    def index(self) -> str:
        """zset: topic -> time (us) at which to look at it: its earliest job is due, or it is held back no longer."""
        return self._key("index")

    @property
    def topics(self) -> str:
        """hash: topic -> how its jobs are delivered, as :class:`~celery_delayq.delivery.Delivery` writes it."""
        return self._key("topics")

    @property
    def holds(self) -> str:
        """zset: topic -> time (us) before which none of its jobs leaves; infinity: paused."""
        return self._key("holds")

    @property
    def rates(self) -> str:
        """hash: topic -> us from one of its jobs to the next, until it has caught up."""
        return self._key("rates")

    @property
    def totals(self) -> str:
        """hash: "moved:", "cancelled:", "dropped:", "orphans:", "requeued:" or "dead:" and topic -> how many jobs."""
        return self._key("totals")

    @property
    def aside(self) -> str:
        """zset: reason, ":" and id -> time (us) from which anybody may finish it."""
        return self._key("aside")

    @property
    def remains(self) -> str:
        """hash: reason, ":" and id -> body, of jobs that lie aside."""
        return self._key("remains")

    @property
    def beat(self) -> str:
        """string: time (us) of the last beat of a dispatcher, or of one up to a second before it."""
        return self._key("beat")

    @property
    def expiries(self) -> str:
        """zset: topic -> time (us) at which the first of its leases runs out."""
        return self._key("expiries")

    @property
    def ways(self) -> str:
        """hash: topic -> how its jobs are delivered, of topics with reserved or dead jobs."""
        return self._key("ways")

    @property
    def serves(self) -> str:
        """string: the broker that jobs are handed over to, where that is not this Redis; without credentials."""
        return self._key("serves")

    @property
    def shards(self) -> str:
        """zset: a number of shards that jobs were ever spread over -> the same; in the first shard only. Missing: 1."""
        return self._key("shards")

    @property
    def version(self) -> str:
        """string: the :data:`VERSION` by which this key space is used; written by whoever uses it first."""
        return self._key("version")

    def journal(self, operation: str) -> str:
        """hash: topic -> how far a long change of many jobs has come. The only key of ours that expires."""
        return self._key(f"journal:{operation}")

    def schedule(self, topic: str) -> str:
        """zset: id -> due (us)."""
        return self._key(f"schedule:{topic}")

    def jobs(self, topic: str) -> str:
        """hash: id -> body."""
        return self._key(f"jobs:{topic}")

    def ties(self, topic: str) -> str:
        """zset: due (us) -> last score given to a job of that very due."""
        return self._key(f"ties:{topic}")

    def steps(self, topic: str) -> str:
        """hash: id -> priority step, only of jobs whose step is not 0."""
        return self._key(f"steps:{topic}")

    def firsts(self, topic: str) -> str:
        """hash: id -> time (us) of the first put, only of jobs with a max_wait."""
        return self._key(f"firsts:{topic}")

    def graces(self, topic: str) -> str:
        """hash: id -> how late (us) it may be handed over, only of jobs that are dropped then."""
        return self._key(f"graces:{topic}")

    def of_topic(self, topic: str) -> tuple[str, str, str, str, str, str]:
        """The six keys of a topic, in the order in which every script takes them."""
        return (
            self.schedule(topic),
            self.jobs(topic),
            self.ties(topic),
            self.steps(topic),
            self.firsts(topic),
            self.graces(topic),
        )

    def attempts(self, topic: str) -> str:
        """hash: id -> how often it was reserved, only of jobs that came back since."""
        return self._key(f"attempts:{topic}")

    def leases(self, topic: str) -> str:
        """zset: id -> time (us) at which its lease runs out."""
        return self._key(f"leases:{topic}")

    def tickets(self, topic: str) -> str:
        """hash: id -> token, attempts, due, step, first and grace of a reserved job, with blanks between them."""
        return self._key(f"tickets:{topic}")

    def reserved(self, topic: str) -> str:
        """hash: id -> body, of reserved jobs."""
        return self._key(f"reserved:{topic}")

    def dead(self, topic: str) -> str:
        """zset: id -> time (us) of its death."""
        return self._key(f"dead:{topic}")

    def letters(self, topic: str) -> str:
        """hash: id -> body, of dead jobs."""
        return self._key(f"letters:{topic}")

    def causes(self, topic: str) -> str:
        """hash: id -> attempts, due, step, first and grace of a dead job; a line break; why it died."""
        return self._key(f"causes:{topic}")

    def of_leases(self, topic: str) -> tuple[str, str, str, str]:
        """The four keys of a topic's leases, in the order in which every script takes them."""
        return self.attempts(topic), self.leases(topic), self.tickets(topic), self.reserved(topic)

    def of_dead(self, topic: str) -> tuple[str, str, str]:
        """The three keys of a topic's dead jobs, in the order in which every script takes them."""
        return self.dead(topic), self.letters(topic), self.causes(topic)

    @property
    def wake(self) -> str:
        """channel: where a put announces a job that became the earliest; the message is its due time (us)."""
        return self._key(f"wake:{self.database}")

    @property
    def fleet(self) -> str:
        """channel: where dispatchers tell each other that one of them is at work."""
        return self._key(f"fleet:{self.database}")

    def ready(self, topic: str) -> str:
        """list: where a topic's due jobs go if nothing says otherwise: Kombu's own key for a queue at priority 0."""
        return f"{self.global_prefix}{topic}"


@dataclass(frozen=True)
class WatcherKeys:
    """Names for the watchers of one queue. What the queue itself is called is the user's matter.

    Attributes:
        taken: the list of events in work, as the rules name it.
        prefix: first part of the keys.
    """

    taken: str
    prefix: str = "delayq"

    @property
    def holders(self) -> str:
        """hash: slot -> token of the watcher that has it, '' if nobody has."""
        return f"{self.prefix}:rules:holders:{self.taken}"

    @property
    def beats(self) -> str:
        """zset: slot -> time (us) at which its watcher was last heard of."""
        return f"{self.prefix}:rules:beats:{self.taken}"

    def in_work(self, slot: int) -> str:
        """list: events in work at one place; of the first, the list that the rules name."""
        return f"{self.taken}/{slot}" if slot else self.taken
