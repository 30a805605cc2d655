import urllib.error
import urllib.request

import pytest

from towline.telemetry import HealthServer


def _get(server: HealthServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_healthy_process_answers_all_three_paths() -> None:
    with HealthServer("127.0.0.1:0") as server:
        assert _get(server, "/healthz") == (200, '{"status":"ok"}')
        assert _get(server, "/readyz")[0] == 200
        status, text = _get(server, "/metrics")
        assert status == 200
        assert "python_info" in text


def test_what_is_wrong_is_said_with_503() -> None:
    with HealthServer("127.0.0.1:0", live=lambda: "no progress for 61 s") as server:
        status, text = _get(server, "/healthz")
        assert status == 503
        assert "no progress for 61 s" in text
        assert _get(server, "/readyz")[0] == 200


def test_a_taken_address_is_an_error_at_once_that_names_it() -> None:
    with (
        HealthServer("127.0.0.1:0") as server,
        pytest.raises(OSError, match=rf"{server.address}: .*in use"),
        HealthServer(server.address),
    ):
        pass


@pytest.mark.parametrize("listen", ["", "abc", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:²", "h:-1"])
def test_what_is_no_address_is_told_as_such(listen: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        HealthServer(listen)
