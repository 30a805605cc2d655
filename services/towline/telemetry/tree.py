"""The spans of one trace as a tree, as text. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from towline.telemetry import conventions
from towline.telemetry.local import KeptSpan

_SHOWN: Final[Mapping[str, str]] = {
    "gen_ai.usage.input_tokens": "tokens in",
    "gen_ai.usage.output_tokens": "tokens out",
    conventions.OUTCOME: "outcome",
    conventions.APPROVER: "by",
    conventions.REASON: "reason",
}
"""Attributes worth a word beside the name."""
_MISSING: Final = "(not ended yet, or not kept)"


@dataclass(slots=True)
class _Node:
    """A span and those below it; without span, a parent of whom only the children are known."""

    span: KeptSpan | None
    start_ns: int
    children: list[_Node] = field(default_factory=list["_Node"])


def lines(spans: Sequence[KeptSpan]) -> list[str]:
    """One line a span: the tree, the service, begin and duration; a long run's times stay readable."""
    if not spans:
        return []
    begin_ns = min(span.start_ns for span in spans)
    shown = list(_walk(_roots(spans), ""))
    width = min(max(len(tree) for tree, _ in shown), 70)
    services = max(len(_service(node)) for _, node in shown)
    texts: list[str] = []
    for tree, node in shown:
        text = f"{tree:<{width}}  {_service(node):<{services}}"
        if node.span is not None:
            span = node.span
            at, took = duration(span.start_ns - begin_ns), duration(span.end_ns - span.start_ns)
            text = f"{text}  {'+' + at:>9}  {took:>9}  {_about(span)}"
        texts.append(text.rstrip())
    return texts


def duration(nanoseconds: int) -> str:
    """A length of time in about three digits: ``0.42 ms``, ``12.3 s``, ``2 d 3 h``."""
    seconds = nanoseconds / 1e9
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86_400
    if hours < 1:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    if days < 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days)} d {int(hours % 24)} h"


def _roots(spans: Sequence[KeptSpan]) -> list[_Node]:
    nodes = {span.span_id: _Node(span, span.start_ns) for span in spans}
    roots: list[_Node] = []
    missing: dict[str, _Node] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, span.span_id)):
        node = nodes[span.span_id]
        if span.parent_id is None:
            roots.append(node)
        elif span.parent_id in nodes:
            nodes[span.parent_id].children.append(node)
        else:
            parent = missing.get(span.parent_id)
            if parent is None:
                parent = missing[span.parent_id] = _Node(None, span.start_ns)
                roots.append(parent)
            parent.children.append(node)
    # A parent outside of what is kept, with one child only, is whoever called: no line of its own.
    return [node.children[0] if node.span is None and len(node.children) == 1 else node for node in roots]


def _walk(nodes: Sequence[_Node], indent: str) -> Iterator[tuple[str, _Node]]:
    for number, node in enumerate(nodes):
        last = number == len(nodes) - 1
        branch = "" if not indent and len(nodes) == 1 else ("└─ " if last else "├─ ")
        yield f"{indent}{branch}{_name(node)}", node
        below = indent + ("" if not branch else "   " if last else "│  ")
        yield from _walk(node.children, below or "  ")


def _name(node: _Node) -> str:
    return _MISSING if node.span is None else node.span.name


def _service(node: _Node) -> str:
    return "" if node.span is None else node.span.service.removeprefix("towline-")


def _about(span: KeptSpan) -> str:
    words = [f"{word} {span.attributes[name]}" for name, word in _SHOWN.items() if name in span.attributes]
    if span.error is not None:
        words.append(f"FAILED {span.error}".rstrip())
    return ", ".join(words)
