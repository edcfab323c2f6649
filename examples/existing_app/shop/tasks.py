"""What the shop does in the background."""

from datetime import timedelta

from celery.utils.log import get_task_logger

from .celery import app

logger = get_task_logger(__name__)


class GatewayBusyError(Exception):
    """The payment provider asks us to come again."""


def _pay(order, attempt):
    """Stands for the payment provider, which is always busy at first."""
    if attempt == 0:
        raise GatewayBusyError
    return f"receipt-{order}"


@app.task
def reserve(order):
    return order


@app.task(bind=True, max_retries=5)
def charge(self, order):
    try:
        receipt = _pay(order, self.request.retries)
    except GatewayBusyError as error:
        raise self.retry(exc=error, countdown=1) from error
    return {"order": order, "receipt": receipt, "attempts": self.request.retries + 1}


@app.task
def ship(payment):
    # A week later in real life.
    ask = send_mail.apply_async(("How do you like it?", payment["order"]), eta=app.now() + timedelta(seconds=2))
    return {**payment, "shipped": True, "mail": ask.id}


@app.task(bind=True)
def send_mail(self, subject, order):
    return f"order {order}: {subject} (sent from queue {self.request.delivery_info['routing_key']})"


@app.task
def drop_carts():
    logger.info("dropped the carts that were left")
