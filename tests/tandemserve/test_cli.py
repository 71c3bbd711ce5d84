"""Every command in one process, against the fake router: output, JSON, errors, help."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from tandemserve.api.v1 import inference_pb2
from tandemserve.cli.main import app
from tandemserve.cli.output import print_table
from tandemserve.testing import Fail, FakeInferenceServer, accept, answer, finish, say

Tandem = Callable[..., Result]


@pytest.fixture
def tandem(server: FakeInferenceServer) -> Tandem:
    """Runs `tandem ARGUMENTS` with the fake router as its target."""

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        environment = {"TANDEM_TARGET": server.target, "TANDEM_TOKEN": "", "COLUMNS": "200"}
        return CliRunner(env=environment).invoke(app, arguments, input=stdin)

    return run


def json_lines(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def generate_request(server: FakeInferenceServer) -> inference_pb2.GenerateRequest:
    request = server.requests[-1]
    assert isinstance(request, inference_pb2.GenerateRequest)
    return request


# --- generate ---------------------------------------------------------------------------------


def test_generate_prints_only_the_answer_to_stdout(tandem: Tandem) -> None:
    result = tandem("generate", "hello")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello\n", "")


def test_generate_does_not_add_a_line_to_an_answer_that_ends_with_one(tandem: Tandem) -> None:
    assert tandem("generate", "hello\n").stdout == "hello\n"


def test_generate_reads_stdin_and_files(tandem: Tandem, tmp_path: Path) -> None:
    assert tandem("generate", "-", stdin="from stdin").stdout == "from stdin\n"
    file = tmp_path / "prompt.txt"
    file.write_text("from a file: é")
    assert tandem("generate", "--file", str(file)).stdout == "from a file: é\n"


def test_generate_passes_its_options_on(tandem: Tandem, server: FakeInferenceServer) -> None:
    result = tandem(
        "generate", "x", "-m", "5", "-t", "0.5", "--top-k", "3", "--top-p", "0.5", "--seed", "4",
        "--stop", "a", "--stop", "b", "--ignore-eos", "--ttft-ms", "10", "--tpot-ms", "2",
        "--jct-ms", "600", "--tbt-ms", "9", "--class", "batch", "--tenant", "t", "--session", "s",
        "--request-id", "r",
        "--logprobs", "1", "--model", "m", "--prompt-logprobs", "2", "--min-p", "0.25",
        "--repetition-penalty", "1.5", "--presence-penalty", "-1", "--frequency-penalty", "2",
        "--logit-bias", "7:-100", "--logit-bias", "9:0.5", "--min-tokens", "2",
        "--stop-token-id", "11", "--stop-token-id", "12",
    )  # fmt: skip
    assert result.exit_code == 0
    request = generate_request(server)
    assert request.request_id == "r"
    assert request.model == "m"
    assert request.sampling == inference_pb2.SamplingParams(
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        seed=4,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={7: -100, 9: 0.5},
    )
    assert request.num_prompt_logprobs == 2
    assert request.stop == inference_pb2.StopConditions(
        max_tokens=5, strings=["a", "b"], token_ids=[11, 12], ignore_eos=True, min_tokens=2
    )
    level = inference_pb2.ServiceLevel(ttft_ms=10, tpot_ms=2, jct_ms=600, tbt_ms=9)
    assert request.service_level == level
    assert request.request_class == inference_pb2.REQUEST_CLASS_BATCH
    assert (request.tenant, request.session, request.num_logprobs) == ("t", "s", 1)


def test_generate_as_json_is_one_event_per_line(tandem: Tandem) -> None:
    events = json_lines(tandem("generate", "hé", "--json", "--request-id", "r1"))
    assert events[0] == {"event": "started", "request_id": "r1"}
    assert [event["event"] for event in events[1:]] == ["accepted", "delta", "delta", "finished"]
    assert (events[1]["model"], events[1]["seed"]) == ("fake", 7)
    assert events[3]["text"] == "é"
    assert events[4]["finish_reason"] == "stop"
    assert events[4]["usage"] == {
        "num_prompt_tokens": 3,
        "num_output_tokens": 2,
        "num_cached_tokens": 0,
    }


def test_logprobs_are_in_the_json(tandem: Tandem, server: FakeInferenceServer) -> None:
    top = inference_pb2.TopLogprob(token_id=5, logprob=-0.5, text="é")
    entry = inference_pb2.TokenLogprobs(logprob=-0.5, top=[top])
    delta = inference_pb2.Delta(token_ids=[5], text="é", logprobs=[entry])
    prompt = inference_pb2.PromptLogprobs(first_token_index=1, logprobs=[entry])
    server.scripts.append(
        [
            accept(),
            inference_pb2.GenerateResponse(prompt_logprobs=prompt),
            inference_pb2.GenerateResponse(delta=delta),
            finish(1),
        ]
    )
    events = json_lines(tandem("generate", "x", "--json", "--logprobs", "1"))
    shown = [{"logprob": -0.5, "top": [{"token_id": 5, "logprob": -0.5, "text": "é"}]}]
    assert events[2] == {"event": "prompt_logprobs", "first_token_index": 1, "logprobs": shown}
    assert events[3]["logprobs"] == shown


def test_generate_shows_timings_on_stderr(tandem: Tandem) -> None:
    result = tandem("generate", "hello", "--stats")
    assert result.stdout == "hello\n"
    for expected in ("ttft_ms", "3.0", "shared_memory", "decode-1", "num_output_tokens"):
        assert expected in result.stderr


def test_several_answers_are_printed_one_after_the_other(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    server.scripts.append(
        [
            accept(),
            say(0, [1], "zero", index=0),
            say(0, [1], "one", index=1),
            finish(1, index=1),
            finish(1, index=0),
        ]
    )
    result = tandem("generate", "x", "-n", "2")
    assert result.stdout == "--- answer 1 ---\none\n--- answer 0 ---\nzero\n"


# --- the other commands -----------------------------------------------------------------------


def test_chat_with_an_argument_answers_once(tandem: Tandem, server: FakeInferenceServer) -> None:
    result = tandem("chat", "hi", "--system", "be brief")
    assert result.stdout == "hi\n"
    request = generate_request(server)
    assert [message.role for message in request.chat.messages] == ["system", "user"]
    assert request.session


def test_chat_without_a_terminal_reads_a_turn_per_line(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    server.scripts.append(answer("one"))
    server.scripts.append(answer("two"))
    result = tandem("chat", stdin="first\n\nsecond\n")
    assert result.stdout == "one\ntwo\n"
    request = generate_request(server)
    assert [message.content for message in request.chat.messages] == ["first", "one", "second"]


def test_chat_as_json_streams_events_too(tandem: Tandem) -> None:
    events = json_lines(tandem("chat", "hi", "--json"))
    names = ["started", "accepted", "delta", "delta", "finished"]
    assert [event["event"] for event in events] == names


def test_tokenize_prints_ids(tandem: Tandem) -> None:
    assert tandem("tokenize", "AB").stdout == "65 66\n"
    assert json_lines(tandem("tokenize", "AB", "--json")) == [
        {"num_tokens": 2, "token_ids": [65, 66]}
    ]


def test_models_lists_limits(tandem: Tandem) -> None:
    result = tandem("models")
    assert result.exit_code == 0
    assert "LlamaForCausalLM" in result.stdout
    (models,) = json_lines(tandem("models", "--json"))
    assert models[0]["max_request_tokens"] == 1024  # type: ignore[index]


def test_version_is_printed(tandem: Tandem) -> None:
    from tandemserve import __version__

    assert tandem("version").stdout == f"tandem {__version__}\n"
    assert tandem("--version").stdout == f"tandem {__version__}\n"
    assert json_lines(tandem("version", "--json"))[0]["tandemserve"] == __version__


@pytest.mark.parametrize(
    ("command", "in_table", "key"),
    [
        ("status", "router-0", "router_id"),
        ("queues", "a decode worker", "generation_tasks"),
        ("reservations", "reserved", "holdings"),
    ],
)
def test_admin_shows_tables_and_json(tandem: Tandem, command: str, in_table: str, key: str) -> None:
    table = tandem("admin", command)
    assert table.exit_code == 0
    assert in_table in table.stdout
    assert key in json_lines(tandem("admin", command, "--json"))[0]


def test_admin_workers_shows_every_column_in_full(tandem: Tandem) -> None:
    table = tandem("admin", "workers")
    assert "decode-0" in table.stdout
    assert "60/64" in table.stdout
    assert "31/32" in table.stdout, "host memory"
    (workers,) = json_lines(tandem("admin", "workers", "--json"))
    assert workers[0]["num_free_blocks"] == 60  # type: ignore[index]


def test_a_degraded_ledger_is_pointed_out(tandem: Tandem) -> None:
    assert "Redis cannot be reached" in tandem("admin", "status").stderr


def test_names_from_the_cluster_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[b]title[/b]", ["name"], [["[red]x[/red]"], [None], [True], [1.25]])
    shown = capsys.readouterr().out
    for expected in ("[b]title[/b]", " [red]x[/red] ", " - ", " yes ", " 1.2 "):
        assert expected in shown


# --- errors -----------------------------------------------------------------------------------


def test_an_error_of_the_cluster_is_one_line_and_exit_code_1(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    failure = Fail(
        grpc.StatusCode.FAILED_PRECONDITION, "too big; lower max_tokens", code="can_never_fit"
    )
    server.failures.append(failure)
    result = tandem("generate", "x")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error [can_never_fit]: too big; lower --max-tokens\n"


def test_a_value_that_the_router_refuses_is_wrong_usage(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    refusal = Fail(
        grpc.StatusCode.INVALID_ARGUMENT,
        "num_logprobs: 30; ask for at most 20",
        code="invalid_request",
    )
    server.failures.append(refusal)
    result = tandem("generate", "x", "--logprobs", "30")
    line = "error [invalid_request]: --logprobs: 30; ask for at most 20\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)
    result = tandem("chat", "x", "--max-tokens", "-5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--max-tokens: -5 is outside 1 to " in result.stderr


def test_an_error_in_the_middle_begins_on_its_own_line(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    failure = Fail(grpc.StatusCode.INTERNAL, "gave up; try again", code="kv_corrupted")
    server.scripts.append([accept(), say(0, [1], "abc"), failure])
    result = tandem("generate", "x")
    assert result.exit_code == 1
    assert result.stdout == "abc\n"
    assert result.stderr == "error [kv_corrupted]: gave up; try again\n"


def test_nobody_there_is_exit_code_3(tandem: Tandem, server: FakeInferenceServer) -> None:
    server.stop()
    result = tandem("admin", "status")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error [connection_failed]: {server.target}: ")
    assert result.stderr.count("\n") == 1
    assert "tandem up" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "x", "--file", __file__],
        ["generate", "--file", "no such file"],
        ["generate", "x", "--class", "urgent"],
        ["generate", "x", "--max-tokens", "many"],
        ["generate", "x", "--logit-bias", "7"],
        ["generate", "x", "--logit-bias", "seven:1"],
        ["generate", "x", "--logit-bias", "7:much"],
        ["generate", "x", "--timeout", "0"],
        ["generate", "x", "--tls-cert", __file__],
        ["admin", "queues", "--max-tasks", "0"],
        ["frobnicate"],
        ["admin", "frobnicate"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    tandem: Tandem, server: FakeInferenceServer, arguments: list[str]
) -> None:
    result = tandem(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert server.requests == []


def test_a_prompt_that_is_not_utf_8_is_wrong_usage(tandem: Tandem, tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"caf\xe9")
    for result in (
        tandem("generate", "--file", str(file)),
        tandem("generate", "-", stdin=b"caf\xe9"),
    ):
        assert result.exit_code == 2
        assert "not UTF-8" in result.stderr


def test_a_token_reaches_the_router_by_option_or_environment(
    tandem: Tandem, server: FakeInferenceServer
) -> None:
    assert tandem("models", "--token", "secret").exit_code == 0
    assert server.metadata[-1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "command",
    [
        [], ["up"], ["demo"], ["generate"], ["chat"], ["tokenize"], ["models"], ["version"],
        ["simulate"], ["plan"], ["replay"],
        ["admin", "status"], ["admin", "workers"], ["admin", "queues"], ["admin", "reservations"],
    ],
)  # fmt: skip
def test_every_help_page_has_examples(tandem: Tandem, command: list[str]) -> None:
    result = tandem(*command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert " ".join(["tandem", *command]) in result.stdout
    assert not command or "--json" in result.stdout


def test_the_help_page_documents_the_exit_codes(tandem: Tandem) -> None:
    page = " ".join(tandem("--help").stdout.split())
    assert "3 cannot connect" in page
    assert "130 interrupted" in page
