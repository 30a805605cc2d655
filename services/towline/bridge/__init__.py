"""Commands in, durable calls out: from the topics `runs` and `approvals` to the scheduler.

`core`, `catalog` (pure: what to do) ← `commands` (does it) ← `app` (puts it together) ← `command`.
"""
