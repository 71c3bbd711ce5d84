"""The launcher's command line becomes settings, or one line that says what is wrong."""

import shlex
from pathlib import Path

import pytest

from deploy.local.options import BUNDLED, parse_options
from deploy.local.settings import effective_configs
from engine.bundled import bundled_model_path
from runtime.errors import ConfigError
from tandemserve.cli.cluster import up


def test_up_alone_is_the_bundled_model_on_one_prefill_and_two_decode_workers() -> None:
    options = parse_options(["up"])
    settings = options.settings
    assert (options.command, options.as_json, options.is_bundled_model) == ("up", False, True)
    assert settings.model == bundled_model_path()
    assert (settings.num_prefill, settings.num_decode) == (1, 2)
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 7700, None)
    assert effective_configs(settings).router.served_model_name == BUNDLED


def test_demo_takes_any_free_port() -> None:
    assert parse_options(["demo"]).settings.port == 0


def test_an_option_for_every_worker_yields_to_one_for_a_kind_of_worker() -> None:
    settings = parse_options(
        ["up", "--block-size", "8", "--decode-worker.block_size=32", "--num-blocks=64"]
    ).settings
    configs = effective_configs(settings)
    assert (configs.prefill.block_size, configs.decode.block_size) == (8, 32)
    assert (configs.prefill.num_blocks, configs.decode.num_blocks) == (64, 64)


def test_ways_to_move_kv_are_named_for_both_sides_at_once() -> None:
    configs = effective_configs(parse_options(["up", "--transports", "gloo,tcp"]).settings)
    assert configs.prefill.transports == configs.decode.transports == ("gloo", "tcp")


def test_every_field_of_a_process_can_be_reached() -> None:
    settings = parse_options(
        ["up", "--router.max-prompt-queue", "7", "--prefill-worker.push-timeout-s=3", "--json"]
    ).settings
    configs = effective_configs(settings)
    assert configs.router.max_prompt_queue == 7
    assert configs.prefill.push_timeout_s == 3.0
    assert configs.decode.push_timeout_s != 3.0


def test_a_cluster_name_is_given_to_every_process() -> None:
    configs = effective_configs(parse_options(["up", "--cluster-name", "blue"]).settings)
    names = {config.cluster_name for config in (configs.router, configs.prefill, configs.decode)}
    assert names == {"blue"}


@pytest.mark.parametrize("argument", ["--policy=fcfs", "--router.policy=fcfs"])
def test_workers_have_the_policy_of_their_router(argument: str) -> None:
    configs = effective_configs(parse_options(["up", argument]).settings)
    assert (configs.router.policy, configs.decode.policy) == ("fcfs", "fcfs")
    assert configs.prefill.policy == "fcfs"
    other = parse_options(["up", argument, "--decode-worker.policy=sarathi"])
    assert effective_configs(other.settings).decode.policy == "sarathi"


def test_what_is_changed_of_the_policy_is_told_to_every_process() -> None:
    argv = ["up", "--policy-set=victims=last-arrived", "--policy-set", "growth_reserve=0.1"]
    configs = effective_configs(parse_options(argv).settings)
    names = {each.policy_name for each in (configs.router, configs.prefill, configs.decode)}
    assert names == {"default+growth_reserve=0.1+victims=last-arrived"}


def test_a_policy_that_the_environment_names_is_told_to_every_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TANDEM_ROUTER_POLICY", "fcfs")
    monkeypatch.setenv("TANDEM_ROUTER_POLICY_SET", "victims=largest-slack,reserves_more_again=yes")
    configs = effective_configs(parse_options(["up"]).settings)
    assert configs.prefill.policy_name == configs.decode.policy_name == configs.router.policy_name
    assert configs.decode.policy_name.startswith("fcfs+victims=largest-slack")


def test_the_longest_context_is_told_to_every_process() -> None:
    configs = effective_configs(parse_options(["up", "--max-model-len", "4096"]).settings)
    lengths = {config.max_model_len for config in (configs.router, configs.prefill, configs.decode)}
    assert lengths == {4096}


def test_a_model_of_the_users_own_is_named_after_its_folder(tmp_path: Path) -> None:
    options = parse_options(["up", "--model", str(tmp_path / "qwen")])
    assert not options.is_bundled_model
    assert effective_configs(options.settings).router.served_model_name == "qwen"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "up|demo"),
        (["down"], "down"),
        (["up", "--prefill", "0"], "--prefill"),
        (["up", "--decode", "many"], "--decode"),
        (["up", "--start-timeout-s", "nan"], "--start-timeout-s"),
        (["up", "--modle", "x"], "--modle"),
        (["up", "--gateway.port=1"], "--router.FIELD"),
        (["up", "--mixed-worker.foo=1"], "mixed workers take the settings of decode workers"),
        (["up", "--mixed_worker.max_num_seqs=1"], "--decode-worker.max-num-seqs"),
        (["up", "--router.redis-url=redis://h"], "--redis"),
        (["up", "--prefill-worker.worker-id=x"], "set by the launcher"),
        (["up", "--router.policy"], "--router.policy=VALUE"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_options(argv)
    assert said in refusal.value.message
    assert "\n" not in refusal.value.message


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--router.polcy=fcfs", "did you mean --policy"),
        ("--policy-set=victims=oldest", "use one of last-arrived, cheapest-to-recompute"),
        ("--block-size=0", "block_size"),
        ("--device=tpu", "device"),
        ("--redis=http://localhost", "redis_url"),
        ("--port=70000", "port"),
    ],
)
def test_a_value_that_a_process_would_refuse_is_refused_before_anything_starts(
    argument: str, said: str
) -> None:
    settings = parse_options(["up", argument]).settings
    with pytest.raises(ConfigError, match=said):
        effective_configs(settings)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--kv-slices=2", "write --prefill-worker.kv-slices and --decode-worker.kv-slices"),
        ("--swap-mib=2", "write --decode-worker.swap-mib"),
        ("--max-prompt-queue=2", "write --router.max-prompt-queue"),
        ("--nonsense", "see --help"),
    ],
)
def test_settings_of_processes_are_told_by_how_they_are_given(argument: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="unrecognized arguments") as caught:
        parse_options(["up", argument])
    assert str(caught.value).endswith(hint)


EXAMPLES = [
    line.strip() for line in (up.__doc__ or "").splitlines() if line.strip().startswith("tandem up")
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_help_page_is_one(example: str) -> None:
    _, *arguments = shlex.split(example)
    configs = effective_configs(parse_options(arguments).settings)
    flags = " ".join(arguments)
    assert ("tensor-parallel" in flags) == (configs.decode.tensor_parallel_size == 2)
    assert ("--device cuda" in flags) == (configs.prefill.device == configs.decode.device == "cuda")
    assert ("--kv-dtype" in flags) == (configs.decode.kv_dtype == "fp8_e4m3")


def test_the_help_page_has_an_example_of_each_kind() -> None:
    assert EXAMPLES[0] == "tandem up"
    for part in ("--model", "--decode 2", "--mixed", "cuda", "--transports", "--router."):
        assert any(part in example for example in EXAMPLES)
