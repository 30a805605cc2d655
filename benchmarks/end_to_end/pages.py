"""Calculated parts of documents, between two marks."""

from __future__ import annotations


class PageError(ValueError):
    """A document lacks the marks between which something is to be written."""


def marks(by: str) -> tuple[str, str]:
    """First and last line of what `by` calculates (HTML comments, unseen by readers)."""
    return f"<!-- calculated by {by} -->", f"<!-- end of {by} -->"


def replaced(page: str, by: str, tables: str) -> str:
    """`page` with `tables` between the marks of `by`.

    Raises:
        PageError: It has no such marks.
    """
    begin, end = marks(by)
    head, found_begin, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise PageError(f"the page lacks the lines {begin} and {end}: put them where the tables belong")
    return f"{head}{begin}\n{tables}{end}{tail}"
