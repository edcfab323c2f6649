"""Side by side with the job systems that somebody would pick instead, each in an environment of its own."""

from .comparison import run

__all__ = ["run"]
