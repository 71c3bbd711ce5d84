"""What help pages list, and files that options name."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduling.policies import POLICIES
from tandemserve import Client, TLSConfig
from tandemserve.cli.cluster_options import POLICY_NAMES
from tandemserve.cli.main import app


def test_the_policies_named_are_those_that_serve() -> None:
    serving = [name for name, policy in POLICIES.items() if not policy.needs_foresight]
    assert list(POLICY_NAMES) == serving


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("up", ["--num-blocks", "--log-dir", "--max-num-seqs", "--start-timeout-s",
                "--cluster-name", *POLICY_NAMES]),
        ("simulate", ["--max-requests", "--rate", *POLICIES]),
        ("plan", ["--max-requests", *POLICIES]),
    ],
)  # fmt: skip
def test_help_lists_what_the_examples_use(command: str, options: list[str]) -> None:
    page = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).stdout
    for option in options:
        assert option in page


def test_a_ca_that_is_no_pem_is_blamed_before_anybody_is_called(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no certificate")
    arguments = ["generate", "x", "--target", "127.0.0.1:1"]
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, [*arguments, "--tls-ca", str(file)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{file} holds no certificate in PEM form" in result.stderr
    pair = ["--tls-cert", str(file), "--tls-key", str(file)]
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, [*arguments, *pair])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "are no certificate and its private key in PEM form" in result.stderr


def test_the_sdk_blames_the_file_as_well(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.touch()
    with (
        Client("127.0.0.1:1", tls=TLSConfig(ca=file)) as client,
        pytest.raises(ValueError, match="holds no certificate in PEM form"),
    ):
        client.generate("x")
