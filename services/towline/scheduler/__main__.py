"""``python -m towline.scheduler``: the same as ``towline scheduler``."""

import gc

# What is loaded stays: looking through it for garbage meanwhile costs a tenth of a start. The server turns
# the collector on when it is there.
gc.disable()

from towline.scheduler.command import app  # noqa: E402

app()
