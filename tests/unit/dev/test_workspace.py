"""The data folder: one owner, remembered ports, addresses written whole."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline.dev.errors import AlreadyRunningError
from towline.dev.workspace import env_lines, open_workspace, write_atomically


def test_a_data_folder_has_one_owner(tmp_path: Path) -> None:
    with (
        open_workspace(tmp_path),
        pytest.raises(AlreadyRunningError, match="another towline dev"),
        open_workspace(tmp_path),
    ):
        pytest.fail("opened twice")
    with open_workspace(tmp_path) as again:
        assert again.path == tmp_path


def test_a_temporary_folder_is_gone_at_the_end() -> None:
    with open_workspace(None) as workspace:
        (workspace.path / "file").write_text("x")
        assert workspace.path.is_dir()
    assert not workspace.path.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"kafka": "x", "relay": 70000, "valkey": 0, "worker": -1, "bridge": true}'],
)
def test_a_damaged_ports_file_is_no_ports(tmp_path: Path, content: str) -> None:
    (tmp_path / "ports.json").write_text(content)
    with open_workspace(tmp_path) as workspace:
        assert workspace.last_ports() == {}
        workspace.remember_ports({"kafka": 9092})
        assert workspace.last_ports() == {"kafka": 9092}


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    target = tmp_path / "addresses.env"
    target.write_text("old")
    write_atomically(target, "new")
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["addresses.env"]


def test_addresses_are_written_a_line_each() -> None:
    lines = env_lines({"TOWLINE_REDIS_URL": "redis://127.0.0.1:1/0", "TOWLINE_KAFKA_BOOTSTRAP": "a:1,b:2"})
    assert lines == "TOWLINE_KAFKA_BOOTSTRAP=a:1,b:2\nTOWLINE_REDIS_URL=redis://127.0.0.1:1/0\n"


@given(st.text())
def test_no_value_can_add_a_line_or_be_expanded_by_a_shell(value: str) -> None:
    if set("$`'\"\\ \n\r") & set(value):
        with pytest.raises(ValueError, match="NAME"):
            env_lines({"NAME": value})
    else:
        assert env_lines({"NAME": value}) == f"NAME={value}\n"
