"""Delays three greetings, takes one back, moves one, and waits for the two that are left."""

from datetime import timedelta

from tasks import app, greet

delayq = app.delayq

ada = greet.apply_async(("Ada",), countdown=1.25)
nobody = greet.apply_async(("nobody",), countdown=2)
grace = greet.apply_async(("Grace",), countdown=3600)
print("waiting:", ", ".join(task.argsrepr for task in delayq.scheduled()), flush=True)

delayq.cancel(nobody.id)
delayq.reschedule(grace.id, delayq.get(grace.id).due - timedelta(seconds=3598))
print("waiting:", ", ".join(task.argsrepr for task in delayq.scheduled()), flush=True)

for greeting in (ada, grace):
    print(greeting.get(timeout=30), flush=True)
