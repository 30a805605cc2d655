"""``python -m towline.scheduler``: the same as ``towline scheduler``."""

from towline.scheduler.command import app

app()
