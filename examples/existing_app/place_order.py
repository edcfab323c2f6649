"""Places an order that may be cancelled for a second, and follows it to its end."""

from celery import chain
from celery.result import AsyncResult
from shop import app
from shop.tasks import charge, reserve, ship

order = chain(reserve.s(42), charge.s(), ship.s()).apply_async(countdown=1)
print("order placed; it can be cancelled for a second", flush=True)

shipped = order.get(timeout=60)
print(f"charged at attempt {shipped['attempts']}: {shipped['receipt']}; shipped", flush=True)

mail = AsyncResult(shipped["mail"], app=app)
print(mail.get(timeout=60), flush=True)
