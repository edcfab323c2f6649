"""Run with ``python -I`` where the wheel is installed: is everything in it, and found without the checkout?

Prints what it looked at; exits 1 with a reason if something is missing.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

import celery_delayq
from celery_delayq.scripts import script

checkout = Path(__file__).resolve().parent.parent
package = Path(celery_delayq.__file__).resolve()
lua = files("celery_delayq.lua")
verbs = sorted(file.name.removesuffix(".lua") for file in lua.iterdir() if file.suffix == ".lua")
verbs += sorted(f"rules/{file.name.removesuffix('.lua')}" for file in (lua / "rules").iterdir())
plugins = entry_points(group="celery.commands", name="delayq")
failures = [
    reason
    for reason, wrong in {
        f"{package} lies in the checkout": checkout in package.parents and ".tox" not in package.parts,
        "py.typed is missing": not (package.parent / "py.typed").is_file(),
        "a Lua script is missing": set(verbs)
        != {path.relative_to(checkout / "lua").with_suffix("").as_posix() for path in checkout.glob("lua/**/*.lua")},
        "a Lua script does not load": not all(script(verb).sha for verb in verbs),
        "the command celery-delayq is missing": not entry_points(group="console_scripts", name="celery-delayq"),
        "the plugin celery delayq is missing": not plugins,
        "the plugin celery delayq lacks commands": any(not plugin.load().commands.get("list") for plugin in plugins),
    }.items()
    if wrong
]
print(f"celery_delayq {celery_delayq.__version__} at {package.parent}, verbs: {', '.join(verbs)}")
sys.exit("; ".join(failures) or 0)
