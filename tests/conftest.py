"""For all tests: this machine's own settings stay out, and Hypothesis judges results, not speed."""

from __future__ import annotations

import os

from hypothesis import settings

# Read by the session's fixtures: a part that runs already is used as it is.
_KEPT = {"TOWLINE_CACHE_DIR", "TOWLINE_KAFKA_BOOTSTRAP", "TOWLINE_REDIS_URL", "TOWLINE_SCHEDULER_ADDRESS"}
_KEPT_PREFIXES = ("TOWLINE_TEST_", "TOWLINE_UPSTREAM_")

for _name in [name for name in os.environ if name.startswith(("TOWLINE_", "OTEL_"))]:
    if _name not in _KEPT and not _name.startswith(_KEPT_PREFIXES):
        del os.environ[_name]

# A deadline fails a test because the machine was busy. With CI's profile a failure can be repeated.
settings.register_profile("towline", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("towline")
