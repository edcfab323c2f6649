"""Huey with its Redis storage."""

from .system import CONCURRENCY, System

HUEY = System(
    name="Huey",
    program="with_huey.py",
    requirements=("huey>=3.5,<4", "redis>=5,<9"),
    waiting=("ZCARD", "huey.schedule.peer"),
    settings=(
        f"{CONCURRENCY} threads; results off; a scheduler interval of 1 s, its default and the shortest there is",
    ),
    cannot=(
        "look more often than once a second",
        "give a killed worker's tasks to another: who takes one removes it from Redis",
        "take a cancelled task out of Redis before it is due: it is marked, and dropped then",
        "move a waiting task: reschedule() marks it as cancelled and puts another, with another id",
    ),
)
