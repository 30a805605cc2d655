"""A campaign's report: Markdown, and its plot as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.chaos.campaign import Result, told

_WIDTH, _HEIGHT, _LEFT = 1000, 240, 120
_COLOURS: Final = {
    "kill": "#c0392b",
    "stop": "#d68910",
    "roll": "#2471a3",
    "flush": "#7d3c98",
    "cut": "#117a65",
    "full": "#784212",
}


def write(result: Result, folder: Path) -> Path:
    """``report.md`` and ``timeline.svg`` in `folder`; gives the former."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "timeline.svg").write_text(timeline(result), encoding="utf-8")
    report = folder / "report.md"
    report.write_text(markdown(result), encoding="utf-8")
    return report


def markdown(result: Result) -> str:
    """The report's text."""
    counts = result.verdict.counts
    verdict = "**No violation.**" if result.is_good else "**Violations or problems, see below.**"
    head = (
        f"Seed {result.plan.seed}: {len(result.happened)} faults within {result.plan.faults_s:.0f} s, "
        f"{counts['runs']} runs ({result.in_flight} in flight when the faults began), "
        f"{counts['events']} events read; quiet after {result.settled_after_s:.0f} s. "
        f"{verdict}"
    )
    equation = (
        f"sent {counts['sent']} = handled {counts['handled']} + dead-lettered {counts['dead-lettered']} "
        f"+ rejected {counts['rejected']}"
    )
    lines = [
        "# Chaos report",
        "",
        head,
        "",
        "![timeline](timeline.svg)",
        "",
        "| what | how many |",
        "|---|---|",
        *(f"| {name} | {number} |" for name, number in counts.items()),
        *(f"| outcome {name} | {number} |" for name, number in sorted(result.tally.items())),
        f"| violations | {len(result.verdict.violations)} |",
        "",
        equation,
        "",
        "## Violations and problems",
        "",
        *(f"- {line}" for line in (*told(result.verdict.violations).splitlines(), *result.problems)),
        *([] if not result.is_good else ["none"]),
        "",
        "## Faults",
        "",
        "| at | what | whom | mended after |",
        "|---|---|---|---|",
        *(
            f"| {fault.at_s:.1f} s | {fault.what} | {fault.whom} | {fault.back_after_s:.1f} s |"
            for fault in sorted(result.happened, key=lambda fault: fault.at_s)
        ),
        "",
    ]
    return "\n".join(lines)


def timeline(result: Result) -> str:
    """Faults as bars, a row for each part; below them the outcomes over time."""
    rows = sorted({fault.whom for fault in result.happened})
    end_s = max(1.0, result.settled_after_s, *result.outcome_times_s)
    scale = (_WIDTH - _LEFT - 10) / end_s
    top = 18 * len(rows) + 20
    shapes = [f'<text x="4" y="{18 * n + 24}">{name}</text>' for n, name in enumerate(rows)]
    for fault in result.happened:
        x, y = _LEFT + fault.at_s * scale, 18 * rows.index(fault.whom) + 13
        width = max(2.0, fault.back_after_s * scale)
        shapes.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="13" fill="{_COLOURS[fault.what]}">'
            f"<title>{fault.what} {fault.whom} at {fault.at_s:.1f} s</title></rect>"
        )
    total = max(1, len(result.outcome_times_s))
    points = " ".join(
        f"{_LEFT + max(0.0, at_s) * scale:.1f},{top + _HEIGHT * (1 - number / total):.1f}"
        for number, at_s in enumerate((0.0, *result.outcome_times_s))
    )
    shapes += [
        f'<polyline points="{points}" fill="none" stroke="#1e8449" stroke-width="2"/>',
        f'<text x="4" y="{top + 12}">{total} outcomes</text>',
        f'<text x="{_WIDTH - 60}" y="{top + _HEIGHT + 16}">{end_s:.0f} s</text>',
        *(
            f'<text x="{_LEFT + 60 * n}" y="{top + _HEIGHT + 16}" fill="{colour}">{what}</text>'
            for n, (what, colour) in enumerate(_COLOURS.items())
        ),
    ]
    style = 'font-family="sans-serif" font-size="12"'
    size = f'width="{_WIDTH}" height="{top + _HEIGHT + 24}"'
    body = "\n".join(shapes)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{body}\n</svg>\n'
