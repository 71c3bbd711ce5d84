"""What a file that cannot be read says about itself."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.traces.draft import Row, taken
from simulator.traces.errors import (
    TraceDamaged,
    TraceEmpty,
    TraceError,
    TraceFieldInvalid,
    TraceFormatUnknown,
    TraceLineInvalid,
    TraceNotAWorkload,
    TraceNotReadable,
    TraceOptionInvalid,
    TraceTooLarge,
)
from simulator.traces.lines import MAX_LINE_BYTES, TraceLines, open_trace
from simulator.traces.options import HeldLimits, ReadOptions
from simulator.traces.reading import read_workload

HEADER = "arrival_s,prompt_tokens,output_tokens"
PROMPT = "a whole number of tokens from 1 to 10000000"
Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("row", "field", "value", "expected"),
    [
        ("abc,1,1", "arrival_s", "abc", "seconds from 0 to 1e+11"),
        (",1,1", "arrival_s", "", "seconds from 0 to 1e+11"),
        ("nan,1,1", "arrival_s", "nan", "seconds from 0 to 1e+11"),
        ("inf,1,1", "arrival_s", "inf", "seconds from 0 to 1e+11"),
        ("-1,1,1", "arrival_s", "-1", "seconds from 0 to 1e+11"),
        ("1e12,1,1", "arrival_s", "1e12", "seconds from 0 to 1e+11"),
        ("1_0,1,1", "arrival_s", "1_0", "seconds from 0 to 1e+11"),
        ("1,0,1", "prompt_tokens", "0", PROMPT),
        ("1,-5,1", "prompt_tokens", "-5", PROMPT),
        ("1,5.0,1", "prompt_tokens", "5.0", PROMPT),
        ("1,٣,1", "prompt_tokens", "٣", PROMPT),
        ("1,99999999,1", "prompt_tokens", "99999999", PROMPT),
        ("1,1,-1", "output_tokens", "-1", "a whole number of tokens from 0 to 10000000"),
        ("1,1,nan", "output_tokens", "nan", "a whole number of tokens from 0 to 10000000"),
        ("1,1,1e3", "output_tokens", "1e3", "a whole number of tokens from 0 to 10000000"),
    ],
)
def test_a_bad_value_is_named_with_file_line_and_field(
    write: Write, row: str, field: str, value: str, expected: str
) -> None:
    path = write("a.csv.gz", HEADER, "0,1,1", "", row)

    with pytest.raises(TraceFieldInvalid) as raised:
        read_workload(path)

    error = raised.value
    assert (error.path, error.line, error.field, error.value) == (path, 4, field, value)
    assert error.message == (
        f"{path}, line 4: {field} is {value!r}, expected {expected}; correct the line or leave it "
        "out"
    )


def test_a_value_of_a_million_digits_is_shown_in_part(write: Write) -> None:
    path = write("a.csv", HEADER, f"0,{'9' * 100_000},1")

    with pytest.raises(TraceFieldInvalid) as raised:
        read_workload(path)

    assert len(raised.value.message) < 200 + len(str(path))


def test_a_name_that_is_a_text_is_refused(write: Write) -> None:
    path = write("a.csv", f"{HEADER},tenant", f"0,1,1,{'x' * 201}")

    with pytest.raises(TraceFieldInvalid, match=r"tenant is .*, expected at most 200 characters"):
        read_workload(path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("1,2", "2 values where the header names 3 (first value '1')"),
        ("1,2,3,4", "4 values where the header names 3 (first value '1')"),
        ('1,2,"3"4', "is not CSV (',' expected after '\"')"),
        ('1,2,"3', "is not CSV (unexpected end of data)"),
    ],
)
def test_a_row_that_does_not_fit_the_header_is_refused(
    write: Write, row: str, problem: str
) -> None:
    path = write("a.csv", HEADER, "0,1,1", row)

    with pytest.raises(TraceLineInvalid) as raised:
        read_workload(path)

    assert raised.value.line == 3
    assert raised.value.message.startswith(f"{path}, line 3: {problem}")


@pytest.mark.parametrize("line", ["{", '{"timestamp": 1', '{"a": ' + "[" * 100_000, "9" * 5000])
def test_a_line_that_is_no_json_is_refused(write: Write, line: str) -> None:
    good = json.dumps({"timestamp": 0, "input_length": 1, "output_length": 1})
    path = write("m.jsonl", good, line if line.startswith("{") else f'{{"a": {line}}}')

    with pytest.raises(TraceLineInvalid) as raised:
        read_workload(path)

    assert raised.value.line == 2
    assert "is not JSON" in raised.value.message
    assert len(raised.value.message) < 400 + len(str(path))


def test_a_line_that_is_no_object_is_refused(write: Write) -> None:
    with pytest.raises(TraceLineInvalid, match=r"line 1: holds no JSON object but '\[1, 2\]'"):
        read_workload(write("m.jsonl", "[1, 2]"))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_an_empty_file_is_refused(write: Write, name: str) -> None:
    with pytest.raises(TraceEmpty, match="the file is empty"):
        read_workload(write(name))
    with pytest.raises(TraceEmpty, match="the file is empty"):
        read_workload(write(name, "", "   "))


def test_a_header_without_rows_is_refused(write: Write) -> None:
    with pytest.raises(TraceEmpty, match="no request in it"):
        read_workload(write("a.csv", HEADER))


def test_a_gzip_file_that_is_cut_off_is_refused(write: Write) -> None:
    path = write("a.csv.gz", HEADER, *(f"{k},{k % 97 + 1},{k % 89}" for k in range(5000)))
    path.write_bytes(path.read_bytes()[:-500])

    with pytest.raises(TraceDamaged) as raised:
        read_workload(path)

    assert raised.value.line > 1
    assert "gzip data end or break here" in raised.value.message
    assert raised.value.message.endswith("copy it again from where it came from")


@pytest.mark.parametrize("place", [3, 30, -4])
def test_a_gzip_file_with_a_changed_byte_is_refused(write: Write, place: int) -> None:
    path = write("a.csv.gz", HEADER, *(f"{k},{k % 97 + 1},{k % 89}" for k in range(5000)))
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)

    with pytest.raises(TraceError, match=r"gzip data|is not UTF-8|line"):
        read_workload(path)


def test_gzip_is_known_by_its_first_bytes_and_not_by_the_name(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(f"{HEADER}\n0,1,2\n".encode()))

    assert len(read_workload(path).requests) == 1
    path = path.rename(tmp_path / "plain.gz")
    path.write_text(f"{HEADER}\n0,1,2\n")
    assert len(read_workload(path).requests) == 1


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"{HEADER},tenant\n0,1,2,Jos".encode() + b"\xe9\n")

    with pytest.raises(TraceDamaged, match="line 2: byte 10 of the line is not UTF-8"):
        read_workload(path)


def test_windows_line_ends_and_a_byte_order_mark_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"\ufeff{HEADER}\r\n0,1,2\r\n\r\n1,3,4\r\n".encode())

    assert len(read_workload(path).requests) == 2


def test_a_line_of_many_megabytes_is_refused_before_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"{" + b" " * (3 * MAX_LINE_BYTES)))

    with pytest.raises(TraceLineInvalid, match="line 1: longer than 4194304 bytes"):
        read_workload(path)


def test_a_file_of_blank_lines_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "blank"
    path.write_bytes(b"\n" * 11)

    with path.open("rb") as file, pytest.raises(TraceTooLarge, match="more than 10 lines"):
        list(TraceLines(path, file, max_lines=10))


@pytest.mark.parametrize("limits", [HeldLimits(max_requests=2), HeldLimits(max_prefix_ids=8)])
def test_more_than_fits_into_memory_is_refused(limits: HeldLimits) -> None:
    rows = (Row(0.0, 600, 1, prefix_ids=(1, 2, 3)) for _ in range(3))

    with pytest.raises(TraceTooLarge, match=r"more than .*; give max_requests, or cut the file"):
        taken(Path("trace"), rows, ReadOptions(limits=limits))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceNotReadable, match="No such file"):
        read_workload(tmp_path / "absent.csv")
    with pytest.raises(TraceNotReadable, match="directory"):
        read_workload(tmp_path)
    with pytest.raises(TraceNotReadable, match="null"):
        read_workload("a\0b")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("TIMESTAMP,ContextTokens", "no known columns in 'TIMESTAMP,ContextTokens'"),
        ("0.0,374,44", "no header line, but the values '0.0,374,44'"),
        # Lengths with one more column may be requests whose arrivals have another name.
        (
            "time,prompt_tokens,output_tokens",
            "no known columns in 'time,prompt_tokens,output_tokens'",
        ),
        ('"arrival_s', "no known columns in '\"arrival_s'"),
        ("file,bytes,rows,sha256", "no known columns in 'file,bytes,rows,sha256'"),
    ],
)
def test_an_unknown_table_is_refused_with_the_header_of_our_own(
    write: Write, header: str, found: str
) -> None:
    path = write("a.csv", header, "1,2,3")

    with pytest.raises(TraceFormatUnknown) as raised:
        read_workload(path, rate_rps=1)

    assert raised.value.message == (
        f"{path}, line 1: {found}; a table of requests has the header "
        "arrival_s,prompt_tokens,output_tokens (and tenant,session) (docs/traces.md)"
    )


def test_unknown_objects_are_refused_with_the_fields_of_those_we_know(write: Write) -> None:
    with pytest.raises(TraceFormatUnknown) as raised:
        read_workload(write("a.jsonl", '{"prompt": "secret", "n": 3}'))

    assert "the object has the fields 'prompt, n'; a request has timestamp" in raised.value.message
    assert "secret" not in raised.value.message


def test_a_column_named_twice_is_refused(write: Write) -> None:
    with pytest.raises(TraceLineInvalid, match="line 1: names a column twice"):
        read_workload(write("a.csv", f"{HEADER},arrival_s", "0,1,1,0"))


def test_slos_and_rates_are_no_workload(write: Write) -> None:
    slos = write("s.csv", "source,class,share,ttft_ms,per_token_ms,per_token_metric", "a,b,,,,")
    rates = write("r.csv", "window_start_s,rate_rps,active_clients", "0,212.78,43")

    with pytest.raises(TraceNotAWorkload, match=r"published SLOs, not requests; give it as --slo"):
        read_workload(slos)
    with pytest.raises(TraceNotAWorkload, match=r"not requests; read the table of clients"):
        read_workload(rates)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rate_scale", 0.0),
        ("rate_scale", -1.0),
        ("rate_scale", float("nan")),
        ("rate_scale", float("inf")),
        ("rate_rps", 0.0),
        ("rate_rps", 1e10),
        ("max_requests", 0),
        ("max_requests", 5_000_001),
        ("prefix_block_tokens", 0),
    ],
)
def test_an_option_outside_its_range_is_refused(write: Write, option: str, value: float) -> None:
    path = write("a.csv", HEADER, "0,1,1")

    with pytest.raises(TraceOptionInvalid, match=f"{option} is .*; give a") as raised:
        read_workload(path, **{option: value})  # type: ignore[arg-type]

    assert raised.value.option == option


def test_progress_is_told_in_bytes_of_the_file(write: Write) -> None:
    path = write("a.csv.gz", HEADER, *(f"{k},{k % 97 + 1},{k % 89}" for k in range(50_000)))
    told: list[tuple[int, int]] = []

    read_workload(path, on_progress=lambda done, size: told.append((done, size)))

    size = path.stat().st_size
    assert len(told) == 3
    assert told == sorted(told)
    assert told[-1] == (size, size)
    assert {total for _, total in told} == {size}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_workload_or_a_trace_error(tmp_path: Path, content: bytes) -> None:
    for start in (b"", f"{HEADER}\n".encode(), b'{"timestamp": 0, "input_length": 1, '):
        path = tmp_path / "any"
        path.write_bytes(start + content)
        try:
            num_requests = len(read_workload(path, rate_rps=1).requests)
        except TraceError:
            continue
        assert num_requests > 0


def test_lines_are_numbered_as_an_editor_numbers_them(write: Write) -> None:
    with open_trace(write("a", "one", "", "three")) as source:
        assert [(line.strip(), source.number) for line in source] == [("one", 1), ("three", 3)]
