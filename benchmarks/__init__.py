"""What the README's figures come from: celery_delayq beside stock Celery ("native"), in the same run."""
