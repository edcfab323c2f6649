"""A job system as the comparison sees it: how to have it, how it is set, and what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass

#: How many jobs a worker may run at once, where one process can run more than one.
CONCURRENCY = 10

#: After how long (s) the jobs of a killed worker are given out anew, where that can be set.
RECOVER = 10


@dataclass(frozen=True)
class System:
    """One job system that works on Redis and takes jobs for later.

    Its program, in the folder ``programs``, is started as ``… put`` or ``… work``; the environment variables of both
    are those of :class:`~.deployment.Deployment`.

    Attributes:
        name: as its makers write it.
        program: file name; a ``.cjs`` runs in Node, all others in Python.
        requirements: what pip or npm is asked for, with the range of versions; none for what is installed here.
        oldest_python: the oldest Python that it works with.
        oldest_redis: the oldest Redis that it works with.
        waiting: the Redis command, with its argument, that counts jobs which wait for their time; None where jobs that
            are ready cannot be told from them.
        settings: how it is set, where that is not its default, and why.
        cannot: what it has not, or what it has at a price that ours has not; for who chooses. True of the versions that
            ``requirements`` allows, as read in their source.
    """

    name: str
    program: str
    requirements: tuple[str, ...] = ()
    oldest_python: tuple[int, int] = (3, 10)
    oldest_redis: tuple[int, int] = (6, 2)
    waiting: tuple[str, str] | None = None
    settings: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()
