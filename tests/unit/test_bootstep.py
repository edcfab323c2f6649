"""Where the dispatcher stands among the parts of a worker."""

from __future__ import annotations

from celery import Celery
from celery.worker import WorkController

from celery_delayq import DelayQ


def test_the_dispatcher_starts_after_all_that_forks() -> None:
    """Pool children and embedded beat are forked before our thread begins: they could inherit a lock that it holds."""
    app = Celery("order", broker="redis://", set_as_current=False)
    DelayQ(app)
    blueprint = WorkController.Blueprint(steps=app.steps["worker"])
    order = [step.__name__ for step in blueprint._finalize_steps(blueprint.claim_steps())]
    assert order.index("Pool") < order.index("DispatcherStep")
    assert order.index("Beat") < order.index("DispatcherStep")
