"""A storm over a whole system: every fault that we know, at random, while thousands of tasks fall due.

``python -m tests.chaos.storm --help``, or ``tox -e chaos``.
"""
