"""What a process is started with: arguments as the kubelet expands them, an environment without strays."""

import pytest

from moorage_operator.local.launch import base_environment, expand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--port=$(PORT)", "--port=8091"),
        ("$(PORT)$(HOST)", "8091127.0.0.1"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(PORT)", "$(PORT)"),
        ("$PORT", "$PORT"),
        ("cost: 5$", "cost: 5$"),
        ("$(PORT", "$(PORT"),
        ("", ""),
    ],
)
def test_expansion_is_the_kubelets(text: str, expected: str) -> None:
    assert expand(text, {"PORT": "8091", "HOST": "127.0.0.1"}) == expected


def test_what_lingers_in_a_shell_does_not_reach_modules() -> None:
    environ = {"PATH": "/bin", "HTTPS_PROXY": "x", "DATABASE_DSN": "y", "PORT": "1", "MOORAGE_MODULE": "z"}
    assert base_environment(environ) == {"PATH": "/bin", "HTTPS_PROXY": "x"}
