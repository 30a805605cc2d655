"""End to end: Towline beside what one would pick instead, on the same machine in one go.

    python benchmarks/install.py                      # fetch the other systems, once
    python benchmarks/run.py [--short] [--systems A,B,…] [--workloads A,B,…] [--rounds N] [--alone] [--merge]
    python benchmarks/run.py --sweep | --data-growth RUNS | --soak MINUTES [--systems …]

Every system does the same job with the same agent on one Kafka (see `end_to_end/job.py`), and every answer is
checked. All are started first; then they take turns within each workload, round by round, so that all meet
the same load of others; with ``--alone`` one is up at a time. Writes ``end_to_end.json``, ``end_to_end.md``
and plots; ``--merge`` adds to what is there. A system that is not installed is skipped, with the reason in
the results. Exits with 1 if an answer was lost, came twice or was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":  # `python benchmarks/run.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end import campaigns, installed, report
from benchmarks.end_to_end.pages import replaced
from benchmarks.end_to_end.results import Results
from benchmarks.end_to_end.systems import SYSTEMS
from benchmarks.end_to_end.workloads import (
    Workload,
    approvals,
    at_once,
    offered,
    one_in_flight,
    waiting_approvals,
)

FULL: Mapping[str, Workload] = {
    "one": Workload("one in flight", 100, 0, one_in_flight),
    "at-once": Workload("at once", 1_000, 0, at_once),
    "slow": Workload("at once", 500, 500, at_once),
    "approvals": Workload("approvals", 300, 0, approvals),
    "waiting": Workload("waiting approvals", 2_000, 0, waiting_approvals),
    "in-flight": Workload("at once", 2_000, 10_000, at_once),
    "work-10": Workload("at once", 10, 0, at_once),
    "work-100": Workload("at once", 100, 0, at_once),
    **{
        f"offered-{rate}": Workload(f"offered {rate}/s", rate * 5, 0, offered(rate))
        for rate in (10, 25, 50, 100, 200)
    },
}
SHORT: Mapping[str, Workload] = {
    "one": Workload("one in flight", 50, 0, one_in_flight),
    "at-once": Workload("at once", 300, 0, at_once),
    "slow": Workload("at once", 100, 500, at_once),
    "approvals": Workload("approvals", 100, 0, approvals),
}
MARK = "benchmarks/run.py"
DEFAULT_SYSTEMS = ("towline", "straightforward", "restate", "dbos", "calfkit", "temporal")


def main() -> int:
    """Measure, print, write."""
    arguments = _arguments()
    names = arguments.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        print(f"--systems: unknown: {', '.join(unknown)}; choose from {', '.join(SYSTEMS)}", file=sys.stderr)
        return 2
    known = SHORT if arguments.short else FULL
    wanted = arguments.workloads.split(",") if arguments.workloads else list(known)
    if unknown := [name for name in wanted if name not in known]:
        print(f"--workloads: unknown: {', '.join(unknown)}; choose from {', '.join(known)}", file=sys.stderr)
        return 2
    if arguments.only_report:
        arguments.merge = True
        return finish(arguments, Results())
    if warning := installed.other_build():
        print(f"WARNING: {warning}", file=sys.stderr, flush=True)
    # As by Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if arguments.data_growth:
        new = asyncio.run(campaigns.data_growth(names, arguments.data_growth))
    elif arguments.soak:
        new = asyncio.run(campaigns.soak(names, arguments.soak * 60))
    elif arguments.sweep:
        new = asyncio.run(campaigns.sweep(names))
    else:
        chosen = {name: known[name] for name in wanted}
        campaign = campaigns.alone if arguments.alone else campaigns.side_by_side
        new = asyncio.run(campaign(names, chosen, arguments.rounds, arguments.minutes))
    return finish(arguments, new)


def finish(arguments: argparse.Namespace, new: Results) -> int:
    """Write all that is asked for; 1 if something was not as it should be."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "end_to_end.json"
    results = Results.read(file) if arguments.merge and file.exists() else Results()
    results.merge(new)
    results.write(file)
    report.write(arguments.out, results)
    if arguments.page:
        arguments.page.write_text(replaced(arguments.page.read_text(), MARK, report.compact(results)))
    print((arguments.out / "end_to_end.md").read_text())
    return 1 if any(row.lost or row.duplicates or row.wrong for row in new.rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="fewer runs, fewer workloads")
    parser.add_argument(
        "--systems",
        default=",".join(DEFAULT_SYSTEMS),
        help=f"which, by comma; default {','.join(DEFAULT_SYSTEMS)}; all: {','.join(SYSTEMS)}",
    )
    parser.add_argument("--workloads", help=f"which, by comma; default all: {','.join(FULL)}")
    parser.add_argument("--rounds", type=int, default=1, help="how often each; the table shows medians")
    parser.add_argument(
        "--alone", action="store_true", help="one system up at a time, by turns, each on a Kafka of its own"
    )
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no workload after so long")
    parser.add_argument("--merge", action="store_true", help="add to the results that are in the folder")
    parser.add_argument("--sweep", action="store_true", help="latency at growing offered rates instead")
    parser.add_argument(
        "--data-growth",
        type=int,
        metavar="RUNS",
        help="instead: cost of a run on a data folder with RUNS runs beside one with 1,000",
    )
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="instead: half of what each can do, for so long"
    )
    parser.add_argument("--only-report", action="store_true", help="measure nothing: pages and plots anew")
    parser.add_argument("--page", type=Path, help="a document with this benchmark's marks; gets the table")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
