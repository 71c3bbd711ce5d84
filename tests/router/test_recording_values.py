"""What is read from a recording is what was written, and what nobody needs is not in it."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from router.events import (
    Action,
    EmitTokens,
    Event,
    ReportsArrived,
    RequestArrived,
    RequestSpec,
    SendCommand,
)
from router.recording.entries import is_same
from router.recording.testing import values_of
from router.recording.values import Encoder, ValueMisfit, event_of
from scheduling.ids import Incarnation, RequestId, TaskId, WorkerId
from scheduling.kv_export import KvDoor, KvExport, KvTarget
from scheduling.messages import (
    PROTOCOL_VERSION,
    BlocksGranted,
    SequenceSpec,
    StartPrefill,
    TokensEmitted,
)
from scheduling.prefix_chain import PromptPrefix
from scheduling.sampling import SamplingParams, StopParams

SECRET = "never-to-be-seen"
LEFT_OUT = (
    ("TokensEmitted", "text"),
    ("TokensEmitted", "matched_stop"),
    ("StopParams", "stop_strings"),
    ("KvExport", "token"),
    ("KvDoor", "token"),
)


def spec_of(prompt: tuple[int, ...], **fields: Any) -> RequestSpec:
    usual: dict[str, Any] = {
        "request_id": RequestId("r1"),
        "prompt_token_ids": prompt,
        "sampling": SamplingParams(),
        "stop": StopParams(8),
        "num_choices": 1,
        "tenant": "t",
        "session": "",
        "request_class": "standard",
        "ttft_s": 1.0,
        "tpot_s": 0.1,
        "deadline_s": None,
    }
    return RequestSpec(**(usual | fields))


def through_text(plain: Any) -> Any:
    return json.loads(json.dumps(plain))


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(event=values_of(Event, LEFT_OUT))
def test_every_event_comes_back_as_it_was(event: Event) -> None:
    plain = through_text(Encoder().plain(event))
    back = event_of(plain, Event)
    assert back == event
    assert type(back) is type(event)
    assert Encoder().plain(back) == plain


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(action=values_of(Action))
def test_every_action_can_be_written_and_compared(action: Action) -> None:
    plain = Encoder(is_abridging=True).plain(action)
    assert is_same(through_text(plain), plain)


def test_long_runs_are_packed_and_in_actions_only_compared() -> None:
    tokens = tuple(range(1000))
    packed = Encoder().plain(tokens)
    assert len(json.dumps(packed)) < 5400
    assert event_of(packed, tuple[int, ...]) == tokens
    start = StartPrefill(TaskId("t"), SequenceSpec(tokens, (), SamplingParams(), StopParams(1)))
    other = StartPrefill(
        TaskId("t"), SequenceSpec((*tokens[:-1], 5), (), SamplingParams(), StopParams(1))
    )
    abridged = [
        Encoder(is_abridging=True).plain(SendCommand(WorkerId("w"), command))
        for command in (start, other)
    ]
    assert len(json.dumps(abridged[0])) < 400
    assert not is_same(*abridged)


def test_numbers_are_exact_to_the_last_bit() -> None:
    for number in (0.1 + 0.2, 1e-308, 5e-324, float("inf"), 2**64 - 1):
        assert through_text(Encoder().plain(number)) == number


def test_texts_salts_and_tokens_of_pools_are_not_written() -> None:
    door = KvDoor("tcp", "host:1", "host", SECRET)
    export = KvExport("shm", "file", 4, 64, WorkerId("d"), Incarnation(1), "host", SECRET, (door,))
    target = KvTarget("t", export, (), ())
    emitted = TokensEmitted(TaskId("t"), 0, (5,), SECRET, (), "stop", SECRET)
    reports = (BlocksGranted(TaskId("t"), target), emitted)
    stop = StopParams(4, (), (SECRET, SECRET))
    prefix = PromptPrefix(tuple(range(40)), SECRET)
    keys = prefix.keys(16)
    spec = spec_of(tuple(range(40)), stop=stop, cache_salt=SECRET, prefix=prefix)
    encoder = Encoder(b"key of the recording")
    events = (ReportsArrived(WorkerId("d"), reports, None), RequestArrived(spec))
    plain = [encoder.plain(event) for event in events]
    plain.append(encoder.plain(EmitTokens(RequestId("r"), 0, emitted)))
    assert SECRET not in json.dumps(plain)
    back = event_of(through_text(plain[1]), Event)
    # The blocks of a salted prompt keep their names, and equal salts stay equal.
    assert back.spec.prefix.keys(16) == keys
    assert back.spec.cache_salt == encoder.plain(spec)["cache_salt"] != ""


def test_the_prefix_of_an_unsalted_prompt_is_made_again() -> None:
    prompt = tuple(range(40))
    plain = Encoder().plain(RequestArrived(spec_of(prompt, prefix=PromptPrefix(prompt))))
    assert "prefix" not in plain["spec"]
    # A simulation gives prompts that share nothing.
    plain = Encoder().plain(RequestArrived(spec_of(prompt, prefix=PromptPrefix(()))))
    back = event_of(through_text(plain), Event)
    assert back.spec.prefix.keys(16) == ()


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ({"is": "CallerLeft", "request_id": 5}, "CallerLeft.request_id: 5 is no str"),
        ({"is": "CallerLeft"}, "CallerLeft lacks request_id"),
        ({"is": "CallerLeft", "request_id": "r", "why": 1}, "has no why: a newer version"),
        ({"is": "os.system"}, "is none of"),
        ([1, 2], "is none of"),
        ({"is": "RequestArrived", "spec": {"is": "RequestSpec"}}, "RequestSpec lacks"),
        (
            {"is": "WorkerConnected", "hello": {"is": "WorkerHello", "admission": "ajar"}},
            "WorkerHello.admission: 'ajar' is none of open",
        ),
        (
            {"is": "ReservationAnswered", "claim": {"is": "Claim", "role": "cook"}},
            "Claim.role: 'cook' is none of prefill, decode",
        ),
        (
            {"is": "RequestArrived", "spec": {"is": "RequestSpec",
             "prompt_token_ids": {"is": "run", "u32": "%%%"}}},
            "packed run of integers cannot be read",
        ),
        (
            {"is": "RequestArrived", "spec": {"is": "RequestSpec",
             "prefix": {"is": "PromptPrefix", "token_ids": [], "keys": {"x": []}}}},
            "keys of a PromptPrefix are missing",
        ),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_by_its_field(plain: Any, says: str) -> None:
    with pytest.raises(ValueMisfit, match=says):
        event_of(plain, Event)


def test_what_no_event_can_hold_is_a_defect() -> None:
    with pytest.raises(TypeError, match="set is no part of a recording"):
        Encoder().plain({PROTOCOL_VERSION})
