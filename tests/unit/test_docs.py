"""What the documents say exists, is unique, and is so."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer

from towline.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [ROOT / name for name in listed.stdout.splitlines() if not name.startswith(".")]
    return [path for path in found if path.exists()] or sorted(ROOT.glob("*.md"))


def anchors(path: Path) -> set[str]:
    text = _FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(document: Path) -> None:
    dead = []
    for target in _LINK.findall(_FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            dead.append(target)

    assert dead == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_python_block_parses(document: Path) -> None:
    for language, code in _FENCE.findall(document.read_text()):
        if language == "python":
            ast.parse(code)


def test_decisions_have_unique_numbers() -> None:
    numbers = Counter(path.name[:4] for path in DECISIONS)

    assert [number for number, count in numbers.items() if count > 1 or not number.isdigit()] == []


@pytest.mark.parametrize("record", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_is_short_and_names_what_validates_it(record: Path) -> None:
    text = record.read_text()
    named = re.findall(r"^(?:## )?Validated by.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)

    assert text.startswith(f"# {record.name[:4]}: ")
    assert len(text.splitlines()) <= 100
    assert len(named) == 1
    assert re.search(r"`(?:tests|benchmarks)/", named[0])
    for path, _, test in re.findall(r"`((?:tests|benchmarks)/[\w/.\-]+?)(::(\w+))?`", named[0]):
        assert (ROOT / path).exists(), f"{record.name} is validated by {path}, which does not exist"
        assert not test or f"def {test}(" in (ROOT / path).read_text()


def test_the_worker_leaves_the_umbrella_to_its_own_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[\[<>=~! ]", item)[0] for item in items} for extra, items in extras.items()}

    assert names["worker"] >= {"agent-framework-core", "agent-framework-durabletask"}
    assert [extra for extra, packages in names.items() if "agent-framework" in packages] == [
        "agent-framework"
    ]


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (document.name, target)
        for document in documents()
        for target in re.findall(r"(?:`|^)make ([a-z]+)", document.read_text(), re.MULTILINE)
    }

    assert {(document, target) for document, target in named if target not in targets} == set()


def test_the_first_app_of_the_readme_has_at_most_twenty_lines_of_code() -> None:
    code = first_app()

    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("#")]) <= 20
    assert {"greet", "setup_worker"} <= {
        node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)
    }


def first_app() -> str:
    """The README's first app, as a module's source."""
    after = (ROOT / "README.md").read_text().partition("<!-- first-app:")[2]
    return next(code for language, code in _FENCE.findall(after) if language == "python")


def before_pipe(words: list[str]) -> list[str]:
    """What the shell hands to the first command of a line."""
    ends = [number for number, word in enumerate(words) if word in ("|", "&&", ">", "2>", "&", ";")]
    return words[: ends[0]] if ends else words


def shell_lines() -> list[tuple[str, list[str]]]:
    """Every `towline …` command line in a document, split into words."""
    return [
        (f"{document.relative_to(ROOT)}: {line.strip()}", before_pipe(shlex.split(line, comments=True)))
        for document in documents()
        for language, code in _FENCE.findall(document.read_text())
        for line in (code.splitlines() if language in ("sh", "console", "bash") else ())
        if line.startswith("towline ")
    ]


@pytest.mark.parametrize(("where", "words"), shell_lines(), ids=lambda value: str(value)[:60])
def test_every_command_line_in_a_document_parses(where: str, words: list[str]) -> None:
    root = typer.main.get_command(app)

    def parse(command: Any, arguments: list[str], parent: Any = None) -> None:
        context = command.make_context(command.name, arguments, parent=parent)
        if hasattr(command, "commands") or hasattr(command, "get_command"):
            name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert found is not None, f"{where}: no command {name}"
            parse(found, rest, context)

    parse(root, words[1:])
