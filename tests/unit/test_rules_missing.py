"""Where the packages that rules need are not installed."""

from __future__ import annotations

import subprocess
import sys


def test_the_error_says_what_to_install() -> None:
    """And nothing else asks for them: neither the package nor a DelayQ."""
    code = """
import sys
sys.modules.update(dict.fromkeys(("pydantic", "httpx", "hjson")))
from celery import Celery
from celery_delayq import DelayQ
DelayQ(Celery("plain", broker="redis://"))
try:
    import celery_delayq.rules
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == 'rules need more: pip install "celery-delayq[rules]"\n'
