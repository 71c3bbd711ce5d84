"""What only the synchronous client has to bear: threads, signals, forks, event loops around it."""

import asyncio
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import grpc
import pytest

from tandemserve import AsyncClient, Client, RequestCancelled, Stream, TLSConfig
from tandemserve.testing import Fail, FakeInferenceServer, Hold, accept, say

ROOT = Path(__file__).parents[2]
# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 120.0
FULL = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", code="queue_full", retry_after_s=25)


@pytest.fixture
def client(server: FakeInferenceServer) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def test_many_threads_share_one_client(client: Client) -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda prompt: client.generate(prompt).text, prompts))
    assert texts == prompts


async def test_it_works_inside_a_running_event_loop_and_beside_the_async_client(
    server: FakeInferenceServer, client: Client
) -> None:
    async with AsyncClient(server.target) as async_client:
        assert client.generate("a").text == "a"
        answers = await asyncio.gather(
            async_client.generate("b"), asyncio.to_thread(client.generate, "c")
        )
    assert [answer.text for answer in answers] == ["b", "c"]


def is_reading(thread_id: int) -> bool:
    """Whether the thread is inside a stream's `next`, found by walking its stack."""
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        if frame.f_code is Stream.__next__.__code__:
            return True
        frame = frame.f_back
    return False


def test_ctrl_c_while_reading_cancels_the_request_at_once(
    server: FakeInferenceServer, client: Client
) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), Hold()])
    main_thread = threading.get_ident()

    def press_ctrl_c() -> None:
        tick = threading.Event()
        while not is_reading(main_thread):
            tick.wait(0.01)
        signal.pthread_kill(main_thread, signal.SIGINT)

    stream = client.stream("x", request_id="r1")
    next(stream)
    presser = threading.Thread(target=press_ctrl_c, daemon=True)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    presser.join()
    assert server.wait_until_left("r1")
    with pytest.raises(RequestCancelled):
        next(stream)


def test_ctrl_c_at_any_moment_leaves_the_client_usable(server: FakeInferenceServer) -> None:
    script = f"""
import random, signal, time
from tandemserve import Client
rng = random.Random(5)
signal.signal(signal.SIGALRM, signal.default_int_handler)
with Client({server.target!r}) as client:
    for i in range(200):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.00003, 0.004))
            if i % 3:
                client.generate("some words to say")
            else:
                client.list_models()
            time.sleep(5)
        except KeyboardInterrupt:
            pass
    assert client.generate("done").text == "done"
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=PATIENCE_S)


def test_the_calling_thread_waits_in_no_lock_written_in_python(
    server: FakeInferenceServer, client: Client
) -> None:
    """Ctrl-C inside one, such as the one that Thread.start waits for, leaves it broken."""
    calls: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, arg: object) -> None:
        calls.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        client.list_models()
        client.generate("x")
    finally:
        sys.setprofile(None)
    assert ("pump.py", "run_aside") in calls
    assert ("threading.py", "wait") not in calls


def test_a_process_ends_although_a_stream_is_open(server: FakeInferenceServer) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), Hold()])
    script = f"""
from tandemserve import Client
stream = Client({server.target!r}).stream("x", request_id="r1")
print(next(stream).text)
"""
    command = [sys.executable, "-c", script]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "a\n", "")
    assert server.wait_until_left("r1")


def test_another_thread_can_cancel_a_reader(server: FakeInferenceServer, client: Client) -> None:
    hold = Hold()
    server.scripts.append([accept(), say(0, [1], "a"), hold])
    stream = client.stream("x")
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(next, stream)
        assert hold.reached.wait(PATIENCE_S)
        stream.cancel()
        with pytest.raises(RequestCancelled):
            reading.result(timeout=PATIENCE_S)


def test_cancel_wakes_a_stream_that_waits_for_its_next_attempt(
    server: FakeInferenceServer, client: Client
) -> None:
    server.failures.append(FULL)
    stream = client.stream("x")

    def cancel_later() -> None:
        # Not before the first attempt has reached the server; most often it waits by then.
        tick = threading.Event()
        while not server.requests:
            tick.wait(0.01)
        tick.wait(0.2)
        stream.cancel()

    canceller = threading.Thread(target=cancel_later, daemon=True)
    canceller.start()
    with pytest.raises(RequestCancelled):
        next(stream)
    canceller.join()
    assert len(server.requests) == 1


def test_a_dropped_stream_is_cancelled(server: FakeInferenceServer, client: Client) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), Hold()])
    stream = client.stream("x", request_id="r1")
    next(stream)
    del stream
    gc.collect()
    assert server.wait_until_left("r1")


def test_a_client_that_crossed_a_fork_says_so(server: FakeInferenceServer) -> None:
    script = f"""
import os
from tandemserve import Client, ClientClosed
client = Client({server.target!r})
client.list_models()
child = os.fork()
if child == 0:
    try:
        client.list_models()
    except ClientClosed as error:
        client.close()
        os._exit(7 if "after the fork" in error.message else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert client.list_models() == ("fake",)
client.close()
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=PATIENCE_S)


def test_half_a_key_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="cert and key belong together"):
        TLSConfig(cert=Path("cert.pem"))


@pytest.mark.parametrize(
    ("arguments", "error_class"),
    [
        ({"target": ""}, ValueError),
        ({"target": 7700}, TypeError),
        ({"tls": True}, TypeError),
        ({"token": "a\nb"}, ValueError),
        ({"timeout_s": 0}, ValueError),
        ({"query_timeout_s": "1"}, TypeError),
    ],
)
def test_wrong_constructor_arguments_are_refused_at_once(
    arguments: dict[str, object], error_class: type[Exception]
) -> None:
    with pytest.raises(error_class):
        Client(**arguments)  # type: ignore[arg-type]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(cert),
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key


def test_mutual_tls_is_spoken_by_both_clients(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), require_client_auth=True
    )
    tls = TLSConfig(ca=cert, cert=cert, key=key)

    async def ask(target: str) -> str:
        async with AsyncClient(target, tls=tls, token="t") as client:
            return (await client.generate("async")).text

    with FakeInferenceServer(tls=credentials, token="t") as server:
        with Client(server.target, tls=tls, token="t") as client:
            assert client.generate("sync").text == "sync"
        assert asyncio.run(ask(server.target)) == "async"
