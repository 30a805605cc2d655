"""What is missing is said in one line that names the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from towline.dev import kafka_distribution
from towline.dev.cache import cache_folder
from towline.dev.errors import DistributionError, MissingToolError


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of the path, empty; the cache is empty too."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("TOWLINE_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def executable(path: Path, text: str = "#!/bin/sh\nexit 1\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def one_line(error: Exception) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_without_java_the_line_says_what_to_install(tools: Path) -> None:
    with pytest.raises(MissingToolError) as caught:
        kafka_distribution.resolve()
    assert "openjdk-17-jre-headless" in one_line(caught.value)
    assert "TOWLINE_KAFKA_BOOTSTRAP" in str(caught.value)


def test_without_maven_the_line_says_what_to_install(tools: Path) -> None:
    executable(tools / "java")
    with pytest.raises(MissingToolError) as caught:
        kafka_distribution.resolve()
    assert "apt-get install maven" in one_line(caught.value)


def test_a_java_that_is_too_old_is_named(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "jdk" / "bin" / "java")
    (tmp_path / "jdk" / "release").write_text('JAVA_VERSION="11.0.2"\n')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    with pytest.raises(DistributionError, match=r"Java 11 .* is too old for Kafka: install Java 17"):
        kafka_distribution.resolve()


def test_what_maven_says_is_passed_on_in_one_line(tools: Path, tmp_path: Path) -> None:
    executable(tools / "java")
    executable(tools / "mvn", "#!/bin/sh\necho '[ERROR] no such host'\nexit 1\n")
    with pytest.raises(DistributionError) as caught:
        kafka_distribution.resolve()
    assert "no such host" in one_line(caught.value)
    assert not (tmp_path / "cache" / f"kafka-{kafka_distribution.KAFKA_VERSION}" / "libs").exists()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOWLINE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "towline"
    monkeypatch.setenv("TOWLINE_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
