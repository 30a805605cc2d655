"""How the interpreter that is measured was built."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.end_to_end import interpreter


def test_what_configure_was_told_says_how_it_was_optimized() -> None:
    told = "'--enable-shared' '--enable-optimizations' '--with-lto=full'"

    assert interpreter.optimizations(told, debian=False) == ("PGO", "LTO")
    assert interpreter.optimizations("'--enable-shared'", debian=False) == ()


def test_debians_packages_do_both_and_do_not_say_so() -> None:
    assert interpreter.optimizations("'--enable-shared'", debian=True) == ("PGO", "LTO")


def test_another_environment_of_this_interpreter_is_of_the_same_build() -> None:
    assert interpreter.of(Path(sys.executable)) == interpreter.this()


def test_an_environment_that_is_not_there_has_no_interpreter(tmp_path: Path) -> None:
    assert interpreter.of(tmp_path / "python") is None
