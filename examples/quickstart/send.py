"""Sends three greetings for the next seconds, and waits for them."""

import time

from tasks import greet

from celery_delayq import apply_at, apply_delayed

greetings = [
    greet.apply_async(("Ada",), countdown=1),
    apply_delayed(greet, 2, ("Grace",)),
    apply_at(greet, time.time() + 3, ("Barbara",)),
]
print(f"{len(greetings)} greetings wait in Redis", flush=True)
for greeting in greetings:
    print(greeting.get(timeout=30), flush=True)
