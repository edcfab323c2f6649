"""Huey with its Redis storage."""

from .system import System

HUEY = System(
    name="Huey",
    program="with_huey.py",
    requirements=("huey>=3.5,<4", "redis>=5,<9"),
    settings="scheduler interval 1 s, the shortest there is; results off",
    cannot="look more often than once a second; give a killed worker's task to another; take back a cancelled task's "
    "memory before it is due",
)
