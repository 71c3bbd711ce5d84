"""The sources of settings, their order, and one clear line for every mistake."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from runtime.config import ProcessConfig, RouterConfig, load_config
from runtime.errors import ConfigError
from runtime.worker_config import DecodeConfig, PrefillConfig

MODEL = ["--model", "models/tiny"]


def refusal(
    cls: type[ProcessConfig],
    argv: Sequence[str],
    environ: Mapping[str, str] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(cls, argv, environ or {})
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    return caught.value.message


def settings_file(folder: Path, text: str) -> list[str]:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = settings_file(
        tmp_path, "model: from-file\nport: 1\nmax_prompt_queue: 1\npolicy: from-file\n"
    )
    environ = {"TANDEM_ROUTER_PORT": "2", "TANDEM_ROUTER_MAX_PROMPT_QUEUE": "2"}
    config = load_config(RouterConfig, [*file, "--port", "3"], environ)
    assert config.port == 3
    assert config.max_prompt_queue == 2
    assert config.policy == "from-file"
    assert config.cluster_name == "tandem"


def test_each_worker_reads_the_variables_of_its_own_role_only() -> None:
    environ = {"TANDEM_PREFILL_BLOCK_SIZE": "32", "TANDEM_DECODE_BLOCK_SIZE": "64"}
    assert load_config(PrefillConfig, MODEL, environ).block_size == 32
    decode = load_config(DecodeConfig, MODEL, environ)
    assert (decode.block_size, decode.role, decode.worker_id) == (64, "decode", "decode-0")


def test_a_config_cannot_be_changed() -> None:
    config = load_config(RouterConfig, MODEL, {})
    with pytest.raises(ValueError, match="frozen"):
        config.port = 1


def test_the_served_name_is_the_name_of_the_folder_unless_given(tmp_path: Path) -> None:
    argv = ["--model", f"{tmp_path}/llama/../qwen/"]
    assert load_config(RouterConfig, argv, {}).served_model_name == "qwen"
    named = [*argv, "--served-model-name", "chat"]
    assert load_config(RouterConfig, named, {}).served_model_name == "chat"


def test_lists_are_separated_by_commas_outside_of_the_file(tmp_path: Path) -> None:
    flags = [*MODEL, "--transports", "tcp, shared_memory"]
    assert load_config(DecodeConfig, flags, {}).transports == ("tcp", "shared_memory")
    file = settings_file(tmp_path, "transports: [tcp]\nmodel: m\n")
    assert load_config(DecodeConfig, file, {}).transports == ("tcp",)


@pytest.mark.parametrize(
    ("argv", "is_on"),
    [
        ([], True),
        (["--no-prefix-caching"], False),
        (["--prefix-caching"], True),
        (["--prefix-caching=false"], False),
        (["--no-prefix-caching", "--prefix-caching"], True),
    ],
)
def test_a_switch_needs_no_value_and_has_a_twin_that_turns_it_off(
    argv: list[str], is_on: bool
) -> None:
    assert load_config(PrefillConfig, [*MODEL, *argv], {}).prefix_caching is is_on


def test_none_unsets_what_may_be_unset() -> None:
    environ = {"TANDEM_DECODE_NUM_THREADS": "4"}
    assert load_config(DecodeConfig, MODEL, environ).num_threads == 4
    assert load_config(DecodeConfig, [*MODEL, "--num-threads", "none"], environ).num_threads is None


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert load_config(RouterConfig, [*settings_file(tmp_path, ""), *MODEL], {}).port == 7700


def test_a_missing_model_says_how_to_give_one() -> None:
    assert refusal(RouterConfig, []) == (
        "router: model is required; pass --model or set TANDEM_ROUTER_MODEL"
    )


def test_an_unknown_flag_lists_near_matches() -> None:
    assert refusal(RouterConfig, [*MODEL, "--max-promt-queue=5"]) == (
        "router: unknown flag --max-promt-queue; did you mean --max-prompt-queue?"
    )


def test_a_flag_may_not_be_shortened() -> None:
    assert "unknown flag --drain-timeout" in refusal(RouterConfig, [*MODEL, "--drain-timeout", "1"])


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["stray"], "router: unexpected argument 'stray'; settings are --flags"),
        (["--port"], "router: argument --port: expected one argument"),
    ],
)
def test_a_stray_argument_and_a_missing_value_are_named(argv: list[str], line: str) -> None:
    assert refusal(RouterConfig, [*MODEL, *argv]) == line


def test_an_unknown_variable_lists_near_matches() -> None:
    line = refusal(DecodeConfig, MODEL, {"TANDEM_DECODE_BLOCKSIZE": "16"})
    assert line.startswith("decode: unknown environment variable TANDEM_DECODE_BLOCKSIZE")
    assert "TANDEM_DECODE_BLOCK_SIZE" in line


def test_variables_of_other_processes_and_programs_are_left_alone() -> None:
    environ = {"TANDEM_DECODE_NONSENSE": "1", "PATH": "/bin", "TANDEM_HOME": "x"}
    assert load_config(RouterConfig, MODEL, environ).port == 7700


def test_variables_that_kubernetes_injects_are_explained() -> None:
    environ = {"TANDEM_ROUTER_SERVICE_HOST": "10.0.0.1"}
    assert "enableServiceLinks: false" in refusal(RouterConfig, MODEL, environ)


def test_an_unknown_key_in_the_file_lists_near_matches(tmp_path: Path) -> None:
    line = refusal(RouterConfig, [*settings_file(tmp_path, "policyy: fcfs\n"), *MODEL])
    assert line.endswith("settings.yaml: unknown key 'policyy'; did you mean policy?")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- 1\n", "must hold `key: value` lines"),
        ("port: [1\n", "is not valid YAML: line 2"),
        ("port: 1\nport: 2\n", "line 2: key 'port' is given twice"),
        ("port: true\n", "port: must not be true or false"),
        ("port: {}\n", "port: input should be a valid integer"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refusal(RouterConfig, [*settings_file(tmp_path, text), *MODEL])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    line = refusal(RouterConfig, ["--config", str(missing), *MODEL])
    assert line == f"router: cannot read {missing}: No such file or directory"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in refusal(RouterConfig, ["--config", str(binary), *MODEL])


@pytest.mark.parametrize(
    ("cls", "flag", "value"),
    [
        (RouterConfig, "--port", "65536"),
        (RouterConfig, "--port", "-1"),
        (RouterConfig, "--max-prompt-queue", "0"),
        (RouterConfig, "--standard-ttft-ms", "0"),
        (RouterConfig, "--standard-ttft-ms", "nan"),
        (RouterConfig, "--batch-tpot-ms", "inf"),
        (RouterConfig, "--redis-url", "http://localhost"),
        (RouterConfig, "--cluster-name", "a:b"),
        (RouterConfig, "--log-format", "xml"),
        (RouterConfig, "--max-message-bytes", "1"),
        (DecodeConfig, "--role", "prefill"),
        (DecodeConfig, "--dtype", "float64"),
        (DecodeConfig, "--transports", ""),
        (DecodeConfig, "--kv-checksum-fraction", "1.5"),
        (DecodeConfig, "--num-blocks", "0"),
        (DecodeConfig, "--block-size", "1.5"),
    ],
)
def test_a_value_outside_of_its_range_names_flag_and_field(
    cls: type[ProcessConfig], flag: str, value: str
) -> None:
    line = refusal(cls, [*MODEL, flag, value])
    field = flag.removeprefix("--").replace("-", "_")
    assert re.fullmatch(rf"{cls.process}: {field}[^;]*: .+ \({flag}\)", line)


def test_all_refused_values_are_named_at_once() -> None:
    line = refusal(RouterConfig, ["--port", "x", "--log-level", "loud"])
    assert line.count(";") == 3  # three problems; the first holds a semicolon of its own
    assert "default_factory" not in line
    assert "served_model_name" not in line


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert "tls_cert and tls_key go together" in refusal(RouterConfig, [*MODEL, "--tls-key", "k"])
    assert "tls_client_ca needs" in refusal(RouterConfig, [*MODEL, "--tls-client-ca", "c"])


def test_a_worker_that_listens_everywhere_must_say_where_it_is_reached() -> None:
    everywhere = [*MODEL, "--host", "0.0.0.0"]
    assert "set advertise_host" in refusal(DecodeConfig, everywhere)
    reachable = [*everywhere, "--advertise-host", "10.0.0.7"]
    assert load_config(DecodeConfig, reachable, {}).reachable_host == "10.0.0.7"


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@localhost:6379/0",
        "redis://:hunter2@localhost",
        "rediss://user:p@hunter2@localhost",
        "redis://localhost?db=1&password=hunter2",
    ],
)
def test_no_secret_shows_in_a_config_that_is_printed(url: str) -> None:
    environ = {"TANDEM_ROUTER_REDIS_URL": url, "TANDEM_ROUTER_AUTH_TOKEN": "hunter2"}
    config = load_config(RouterConfig, MODEL, environ)
    assert config.redis_url == url
    assert config.auth_token is not None
    assert config.auth_token.get_secret_value() == "hunter2"
    for shown in (repr(config), str(config), str(config.masked())):
        assert "hunter2" not in shown
        assert "localhost" in shown


def test_a_refused_value_is_not_repeated_because_it_may_be_secret() -> None:
    environ = {"TANDEM_ROUTER_REDIS_URL": "http://:hunter2@localhost"}
    assert "hunter2" not in refusal(RouterConfig, MODEL, environ)


def test_a_dump_is_a_file_that_gives_the_same_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*MODEL, "--port", "1234", "--transports", "tcp,loopback"]
    with pytest.raises(SystemExit) as caught:
        load_config(DecodeConfig, [*argv, "--dump-config"], {})
    assert caught.value.code == 0
    dumped = capsys.readouterr().out
    assert yaml.safe_load(dumped)["port"] == 1234
    again = load_config(DecodeConfig, settings_file(tmp_path, dumped), {})
    assert again == load_config(DecodeConfig, argv, {})


def test_a_dump_hides_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(RouterConfig, [*MODEL, "--auth-token", "hunter2", "--dump-config"], {})
    assert "hunter2" not in capsys.readouterr().out


@pytest.mark.parametrize("cls", [RouterConfig, PrefillConfig, DecodeConfig])
def test_help_describes_every_field(
    cls: type[ProcessConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(cls, ["--help"], {})
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field, info in cls.model_fields.items():
        assert f"--{field.replace('_', '-')} " in shown
        assert info.description
    assert "example: redis://" in shown
    assert "(default: tandem)" in shown


def test_kv_goes_to_the_address_that_routers_are_told_unless_it_has_its_own() -> None:
    def reachable(*flags: str) -> str:
        return load_config(DecodeConfig, [*MODEL, *flags], {}).reachable_kv_host

    assert reachable() == "127.0.0.1"
    assert reachable("--host", "0.0.0.0", "--advertise-host", "10.0.0.7") == "10.0.0.7"
    assert reachable("--kv-host", "10.1.0.7") == "10.1.0.7"
    assert reachable("--kv-host", "0.0.0.0", "--kv-advertise-host", "decode-0") == "decode-0"
    with pytest.raises(ConfigError, match="kv_advertise_host"):
        reachable("--kv-host", "0.0.0.0")


def test_all_streams_have_room_for_32_of_the_largest_unless_told_otherwise() -> None:
    assert load_config(RouterConfig, MODEL, {}).all_streams_mib == 1024
    flags = [*MODEL, "--max-stream-mib", "100"]
    assert load_config(RouterConfig, flags, {}).all_streams_mib == 3200
    more = [*flags, "--max-all-streams-mib", "100"]
    assert load_config(RouterConfig, more, {}).all_streams_mib == 100
    assert "max_all_streams_mib is below" in refusal(
        RouterConfig, [*flags, "--max-all-streams-mib", "99"]
    )
