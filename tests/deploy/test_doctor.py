"""The doctor: it tries the real ways of this machine, and what it says follows from what it saw."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from rich.console import Console

from deploy.doctor.command import main
from deploy.doctor.far_side import FarSide
from deploy.doctor.findings import Finding, findings_of
from deploy.doctor.machine import Facts, Network, look
from deploy.doctor.paths import Path, measure
from deploy.doctor.places import Place, places_with, transports_at
from deploy.doctor.report import Report, as_json, print_report
from kvtransfer.errors import ExportUnavailable
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import PATIENCE_S
from runtime.clock import MonotonicClock

HEALTHY = Facts(
    shm_bytes=8 << 30,
    shm_free_bytes=8 << 30,
    own_namespaces=(),
    num_gpus=2,
    gpu_problem=None,
    peer_problems=(),
    has_nixl=True,
    networks=(Network("eth0", ("10.0.0.7",), 100_000),),
    kv_host="10.0.0.7",
    kv_host_problem=None,
    rdma_devices=("mlx5_0",),
)
FAST = Path("host", "host", "shared_memory", 9e9, 1e-4)
SLOW = Path("host", "host", "tcp", 1e9, 2e-3)
BROKEN = Path("host", "host", "nixl", problem="NIXL cannot be used; install the extra")


def finding(facts: Facts, subject: str) -> Finding:
    return next(f for f in findings_of(facts) if f.subject == subject)


def printed(report: Report, width: int = 160) -> str:
    text = io.StringIO()
    print_report(report, Console(file=text, width=width, markup=False))
    return text.getvalue()


@pytest.mark.parametrize("name", ["shared_memory", "tcp"])
def test_a_way_of_this_machine_is_measured_between_two_processes(name: str) -> None:
    path = measure(Place(), Place(), name, "127.0.0.1", MonotonicClock())
    assert path.works, path.problem
    assert path.bytes_per_s is not None
    assert path.bytes_per_s > 1e6
    assert path.block_latency_s is not None
    assert 0 < path.block_latency_s < 10


def test_a_way_that_does_not_work_says_why_and_what_to_do() -> None:
    path = measure(Place(), Place(), "tcp", "203.0.113.1", MonotonicClock())
    assert not path.works
    assert path.problem is not None
    assert "203.0.113.1 is no address of this machine; set kv_host" in path.problem


@pytest.mark.skipif(look("127.0.0.1").num_gpus > 0, reason="this machine has a GPU")
def test_without_a_gpu_the_ways_between_gpus_say_so() -> None:
    path = measure(Place(0), Place(0), "cuda_ipc", "127.0.0.1", MonotonicClock())
    assert not path.works
    assert "no CUDA device is usable" in str(path.problem)


def test_the_command_prints_json_and_says_which_way_is_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--json", "--transports", "shared_memory"]) == 0
    report = json.loads(capsys.readouterr().out)
    path = report["paths"][0]
    assert (path["from"], path["to"], path["transport"]) == ("host", "host", "shared_memory")
    assert path["works"]
    assert path["is_used"]
    assert path["bytes_per_s"] > 0
    assert {item["subject"] for item in report["machine"]} >= {"/dev/shm", "GPUs", "kv_host"}


@pytest.mark.skipif(look("127.0.0.1").num_gpus > 0, reason="this machine has a GPU")
@pytest.mark.parametrize("names", ["cuda_ipc", "cuda_ipc,shared_memory"])
def test_transports_of_gpus_only_are_no_health_without_one(
    capsys: pytest.CaptureFixture[str], names: str
) -> None:
    assert main(["--json", "--transports", names]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["is_healthy"]
    assert "cuda_ipc serves pools on GPUs only" in report["problems"][0]
    assert "leave it out of transports" in report["problems"][0]


def test_a_named_transport_with_which_no_worker_starts_is_no_health() -> None:
    stops = replace(BROKEN, stops_worker=True)
    report = Report((stops, SLOW), (), ("nixl", "tcp"), are_named=True)
    assert not report.is_healthy
    assert report.used("host", "host") is None
    assert "install the extra; or leave it out of transports" in printed(report)
    # Of one that workers do not try by themselves it is no harm.
    assert Report((SLOW, stops), (), ("shared_memory", "tcp")).is_healthy
    # A way that is only broken here is passed over by a worker, too.
    assert Report((BROKEN, SLOW), (), ("nixl", "tcp"), are_named=True).is_healthy


def test_nothing_tried_is_no_health() -> None:
    assert not Report((), (), ("tcp",)).is_healthy


@pytest.mark.skipif(look("127.0.0.1").num_gpus > 0, reason="this machine has a GPU")
def test_a_transport_that_cannot_be_made_stops_its_worker() -> None:
    path = measure(Place(), Place(), "nccl", "127.0.0.1", MonotonicClock())
    assert path.stops_worker
    assert path.problem is not None


def test_another_process_that_dies_before_it_has_looked_is_told() -> None:
    with FarSide(Place(), "tcp", DoorSettings()) as far_side:
        far_side.export()
        (child,) = multiprocessing.active_children()
        child.kill()
        child.join(PATIENCE_S)
        with pytest.raises(ExportUnavailable, match=r"ended \(exit code -9\)"):
            far_side.verify()


def test_where_no_way_works_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--transports", "tcp", "--kv-host", "203.0.113.1"]) == 1
    assert "goes by no way" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--transports", "pigeon"], "'pigeon' is unknown; use some of cuda_ipc"),
        (["--transports", ","], "no transport is named"),
        (["--min-kv-bytes-per-s", "fast"], "'fast' is no number of bytes, such as 1e9"),
        (["--min-kv-bytes-per-s=-1"], "'-1' is no number of bytes"),
        (["--min-kv-bytes-per-s", "nan"], "'nan' is no number"),
        (["--bogus"], "unrecognized arguments: --bogus; see --help"),
        (["--trans", "tcp"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_transport_that_is_named_twice_is_measured_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--json", "--transports", "tcp, tcp"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [path["transport"] for path in report["paths"]] == ["tcp"]
    assert report["transports_tried_by_workers"] == ["tcp"]


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("203.0.113.1", "203.0.113.1 is no address of this machine; set kv_host"),
        ("nobody.invalid", "'nobody.invalid' is no address or name that this machine knows"),
    ],
)
def test_a_wrong_address_for_kv_is_told_as_what_it_is(host: str, said: str) -> None:
    with pytest.raises(ExportUnavailable, match=said):
        TcpTransport(DoorSettings(host)).create_receiver(1, 64, "decode-0", 1)


def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        transport = TcpTransport(DoorSettings(port=taken.getsockname()[1]))
        with pytest.raises(ExportUnavailable, match=r"another process listens on .*set kv_port"):
            transport.create_receiver(1, 64, "decode-0", 1)


def num_running_of_group(group: int) -> int:
    """Processes that have not ended, whether anybody has taken note of their end or not."""
    found = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            is_of_group = os.getpgid(process.pid) == group
            found += is_of_group and process.status() != psutil.STATUS_ZOMBIE
    return found


def test_an_interrupt_is_one_line_and_leaves_no_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.doctor", "--transports", "shared_memory,tcp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a shell starts it: Ctrl-C reaches it and all that it has started.
        start_new_session=True,
    ) as doctor:
        assert doctor.stderr is not None
        assert "trying shared_memory" in doctor.stderr.readline()
        os.killpg(doctor.pid, signal.SIGINT)
        said, errors = doctor.communicate(timeout=PATIENCE_S)
    assert doctor.returncode == 130
    assert said == ""
    lines = [line for line in errors.splitlines() if "trying" not in line]
    assert lines == ["tandem: interrupted; what was measured is not told"]
    # Python's own helper ends a moment later, when it hears of the end.
    clock = MonotonicClock()
    until_s = clock.now() + PATIENCE_S
    while num_running_of_group(doctor.pid):
        assert clock.now() < until_s, "a process was left behind"


def test_each_gpu_is_tried_alone_and_the_first_with_every_other() -> None:
    assert [f"{s}>{t}" for s, t in places_with(0)] == ["host>host"]
    assert [f"{s}>{t}" for s, t in places_with(2)] == [
        "host>host",
        "gpu0>gpu0",
        "gpu1>gpu1",
        "gpu0>gpu1",
        "gpu1>gpu0",
    ]


def test_what_workers_try_by_default_comes_first() -> None:
    assert transports_at(Place())[:2] == ("shared_memory", "tcp")
    assert transports_at(Place(0))[:2] == ("cuda_ipc", "tcp")


def test_a_healthy_machine_needs_nothing() -> None:
    assert {f.state for f in findings_of(HEALTHY)} == {"ok"}
    assert "100 Gbit/s" in finding(HEALTHY, "eth0").detail


@pytest.mark.parametrize(
    ("change", "subject", "state", "fix"),
    [
        ({"shm_bytes": None}, "/dev/shm", "missing", "--shm-size"),
        ({"shm_bytes": 64 << 20, "shm_free_bytes": 1 << 20}, "/dev/shm", "missing", "emptyDir"),
        ({"own_namespaces": ("pid",)}, "PID namespace", "note", "--pid=container"),
        ({"own_namespaces": ("ipc",)}, "IPC namespace", "note", "--ipc=container"),
        ({"gpu_problem": "no CUDA; use a GPU"}, "GPUs", "note", "use a GPU"),
        (
            {"peer_problems": (("gpu0 and gpu1", "no peer access; see topo"),)},
            "gpu0 and gpu1",
            "missing",
            "see topo",
        ),
        ({"has_nixl": False}, "nixl", "note", "pip install"),
        ({"kv_host": "127.0.0.1"}, "kv_host", "note", "set kv_host to one of 10.0.0.7 (eth0)"),
        ({"kv_host": "127.0.0.1", "networks": ()}, "kv_host", "note", "connect a network"),
        ({"rdma_devices": ()}, "RDMA", "note", "/dev/infiniband"),
        ({"kv_host_problem": "Cannot assign"}, "kv_host", "missing", "address of this machine"),
    ],
)
def test_what_is_missing_is_told_with_what_to_do(
    change: dict[str, object], subject: str, state: str, fix: str
) -> None:
    found = finding(replace(HEALTHY, **change), subject)  # type: ignore[arg-type]
    assert found.state == state
    assert found.fix is not None
    assert fix in found.fix


def test_the_first_way_that_works_and_is_fast_enough_is_used() -> None:
    paths, tried = (BROKEN, FAST, SLOW), ("nixl", "shared_memory", "tcp")
    assert Report(paths, (), tried).used("host", "host") == FAST
    assert Report((BROKEN, SLOW, FAST), (), tried).used("host", "host") == SLOW
    assert Report((SLOW, FAST), (), tried, 5e9).used("host", "host") == FAST
    none = Report(paths, (), tried, 1e12)
    assert none.used("host", "host") is None
    assert not none.is_healthy
    # Those that are named already are not what to name.
    told = printed(none)
    assert "none moves 1e+12 bytes/s; lower --min-kv-bytes-per-s" in told
    assert "to 8.1e+09 or less" in told
    assert "in transports" not in told.split("published")[1]


def test_a_way_that_workers_do_not_try_by_themselves_is_not_said_to_be_used() -> None:
    nixl = replace(FAST, transport="nixl")
    report = Report((replace(BROKEN, transport="tcp"), nixl), (), ("shared_memory", "tcp"))
    assert not report.is_healthy
    assert "name nixl in transports" in printed(report)


def test_every_way_is_a_line_of_the_table_and_an_entry_of_the_json() -> None:
    report = Report((FAST, SLOW, BROKEN), tuple(findings_of(HEALTHY)), ("shared_memory", "tcp"))
    text = printed(report)
    assert "KV from host to host goes by shared_memory" in text
    assert "install the extra" in text
    value = json.loads(json.dumps(as_json(report)))
    assert [path["works"] for path in value["paths"]] == [True, True, False]
    assert [path["is_used"] for path in value["paths"]] == [True, False, False]
    assert value["paths"][1]["block_latency_ms"] == 2.0
    assert value["is_healthy"]


def test_a_narrow_terminal_cuts_no_name() -> None:
    report = Report((FAST, BROKEN), tuple(findings_of(HEALTHY)), ("shared_memory", "tcp"))
    assert "shared_memory" in printed(report, width=80)
