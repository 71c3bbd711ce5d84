"""`--logprobs` without `--json`: a line for each token."""

from typer.testing import CliRunner

from tandemserve.api.v1 import inference_pb2
from tandemserve.cli.main import app
from tandemserve.testing import FakeInferenceServer, accept, finish


def entry(token_id: int, logprob: float, text: str) -> inference_pb2.TokenLogprobs:
    top = inference_pb2.TopLogprob(token_id=token_id, logprob=logprob, text=text)
    other = inference_pb2.TopLogprob(token_id=9, logprob=-2.5, text="\n")
    return inference_pb2.TokenLogprobs(logprob=logprob, top=[top, other])


def shown(server: FakeInferenceServer, *arguments: str) -> str:
    result = CliRunner(env={"TANDEM_TARGET": server.target}).invoke(app, ["generate", *arguments])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def test_tokens_follow_the_answer_with_their_logprobs(server: FakeInferenceServer) -> None:
    scored = [entry(5, -0.5, "h"), inference_pb2.TokenLogprobs(logprob=-1.25)]
    prompt = inference_pb2.PromptLogprobs(first_token_index=1, logprobs=[entry(7, -0.25, "p")])
    delta = inference_pb2.Delta(token_ids=[5, 6], text="hi", logprobs=scored)
    server.scripts.append(
        [
            accept(num_prompt_tokens=2),
            inference_pb2.GenerateResponse(prompt_logprobs=prompt),
            inference_pb2.GenerateResponse(delta=delta),
            finish(2),
        ]
    )
    assert shown(server, "x", "--logprobs", "2", "--prompt-logprobs", "2").splitlines() == [
        "hi",
        "logprobs of the prompt",
        r"    1    -0.250    | 'p' -0.250  '\n' -2.500",
        "logprobs of the answer",
        r"    0        5    -0.500  'h'  | 'h' -0.500  '\n' -2.500",
        "    1        6    -1.250",
    ]


def test_without_the_option_there_is_only_the_answer(server: FakeInferenceServer) -> None:
    assert shown(server, "hello") == "hello\n"
