"""The Lua scripts of celery_delayq, one file per verb; see the header of each."""
