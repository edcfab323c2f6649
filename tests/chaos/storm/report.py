"""What a storm did, for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from importlib.metadata import version
from typing import Any

from .cast import POOLS
from .run import Outcome

#: So many of each violation are explained.
EXPLAINED = 5


def figures(outcome: Outcome) -> dict[str, Any]:
    """All that was counted."""
    wish, verdict, after = outcome.wish, outcome.verdict, outcome.after
    late, outside = sorted(verdict.lateness), sorted(verdict.late_outside)
    return {
        "mode": f"relay to {wish.relay}" if wish.relay else "direct",
        "good": verdict.is_good,
        "seed": wish.seed,
        "seconds": round(outcome.seconds, 1),
        "kills": outcome.kills,
        "faults": dict(sorted(outcome.inflicted.items())),
        "faults by target": dict(sorted(outcome.targets.items())),
        "wrong clocks": outcome.with_clocks,
        "put": {
            "acknowledged": verdict.acked,
            "raised": verdict.raised,
            "cut off": verdict.cut_off,
            "exceptions": dict(verdict.exceptions),
            "batches": verdict.batches,
        },
        "watched": {
            "handed over": verdict.watched,
            "lost": len(verdict.lost),
            "doubled": len(verdict.doubled),
            "early": len(verdict.early),
            "never sent": len(verdict.alien),
            "torn batches": len(verdict.torn),
            "unacknowledged, handed over": verdict.stored_unacked,
            "resent after the hand-over, as documented": len(verdict.resent),
            **(
                {f"published again: {cause}": len(ids) for cause, ids in verdict.republished.items()}
                if wish.relay
                else {}
            ),
        },
        "consumed": after and {**vars(after), "gone": after.gone},
        "lateness (s)": {
            "median": _at(late, 0.5),
            "p99": _at(late, 0.99),
            "latest": _at(late, 1),
            "latest outside of Redis's outages": _at(outside, 1),
        },
        "workers that ended by themselves": _reasons(outcome.ended),
        "other faults": verdict.faults,
        "versions": {
            "Python": platform.python_version(),
            **outcome.server_versions,
            **{name: version(name) for name in ("celery-delayq", "celery", "kombu", "redis")},
        },
    }


def _reasons(ended: list[str]) -> dict[str, int]:
    """Why: the error that Celery calls unrecoverable."""
    found = (re.search(r"Unrecoverable error: (?:server:)?(\w+)", words) for words in ended)
    return dict(Counter(match.group(1) if match else "unknown" for match in found))


def _at(values: list[float], share: float) -> float | None:
    return round(values[min(int(len(values) * share), len(values) - 1)], 3) if values else None


def command(outcome: Outcome) -> str:
    """How to have the same storm again."""
    wish = outcome.wish
    return (
        f"python -m tests.chaos.storm --tasks {wish.tasks} --kills {wish.kills} --seed {wish.seed} "
        f"--pace {wish.pace:g} --every {wish.every:g} --countdown {wish.countdown[0]:g} {wish.countdown[1]:g}"
        + (f" --relay {wish.relay}" if wish.relay else "")
        + (f" --pools {' '.join(wish.pools)}" if wish.pools != POOLS else "")
    )


def as_json(outcome: Outcome) -> str:
    """The figures and the violations."""
    return json.dumps({**figures(outcome), "command": command(outcome), "violations": violations(outcome)}, indent=2)


def violations(outcome: Outcome) -> list[str]:
    """Each violation with what is needed to understand it."""
    texts = [*outcome.verdict.faults]
    for name, ids in outcome.verdict.violations.items():
        texts += [f"{name}: {outcome.explain(task_id)}" for task_id in ids[:EXPLAINED]]
        if len(ids) > EXPLAINED:
            texts.append(f"{name}: and {len(ids) - EXPLAINED} more: {' '.join(ids[EXPLAINED : EXPLAINED + 50])}")
    return texts


def as_markdown(outcome: Outcome) -> str:
    """The figures as tables."""
    told = figures(outcome)
    result = "every promise kept" if told["good"] else "PROMISES BROKEN"
    parts = [
        f"# Storm of seed {told['seed']}, {told['mode']}: {result}",
        f"`{command(outcome)}`: {told['seconds']:g} s, {told['kills']} kills; "
        + ", ".join(f"{name} {number}" for name, number in told["versions"].items()),
        _table("put", told["put"]),
        _table("handed over, to queues that nobody consumes", told["watched"]),
        _table("lateness", told["lateness (s)"]),
        _table("after the hand-over, to stock workers", told["consumed"] or {}),
        _table("fault", told["faults"]),
    ]
    if not outcome.with_clocks:
        parts.append("No clock was wrong: the library of faketime is not here.")
    if outcome.ended:
        parts.append(_table("workers that ended by themselves, with", told["workers that ended by themselves"]))
    wrong = violations(outcome)
    if wrong:
        parts.append("## Violations\n\n" + "\n\n".join(f"```\n{text}\n```" for text in wrong))
        parts.append(f"Logs and ledgers: {outcome.folder}")
    return "\n\n".join(parts) + "\n"


def _table(name: str, rows: dict[str, Any]) -> str:
    lines = [f"| {name} | |", "|---|---:|"]
    for key, value in rows.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"| {key} | {'-' if text in (None, '') else text} |")
    return "\n".join(lines)
