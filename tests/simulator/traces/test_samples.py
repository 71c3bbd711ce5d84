"""The traces that come with the simulator."""

from pathlib import Path

import pytest

from simulator.__main__ import main
from simulator.traces.reading import read_workload
from simulator.traces.samples import AZURE_2023_CONV, SAMPLES, Sample, sample_named

_MAX_BYTES = 30_000
FEW = ("--max-requests", "20", "--hardware", "h200")


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_a_sample_is_small_readable_and_says_whose_it_is(sample: Sample) -> None:
    assert sample.path.stat().st_size <= _MAX_BYTES
    workload = read_workload(sample.path)
    assert workload.name == sample.name
    assert workload.notes == ()
    told = (sample.path.parent / "README.md").read_text("utf-8")
    for part in (sample.path.name, "Source: ", "Licence: ", "Changed here: "):
        assert part in told
    assert "CC BY 4.0" in told
    assert "CC BY 4.0" in sample.about
    assert f"first {len(workload.requests):,} " in sample.about


@pytest.mark.parametrize("command", ["simulate", "plan"])
def test_without_a_trace_the_first_sample_is_taken_as_if_it_were_named(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *FEW]) == 0
    out, err = capsys.readouterr()
    assert f"note: no --trace: this is {AZURE_2023_CONV.about}\n" in err
    assert main([command, *FEW, "--trace", AZURE_2023_CONV.name]) == 0
    by_name = capsys.readouterr()
    assert by_name.out == out
    assert f"note: azure_2023_conv is {AZURE_2023_CONV.about}\n" in by_name.err
    assert main([command, *FEW, "--trace", str(AZURE_2023_CONV.path), "--quiet"]) == 0
    assert capsys.readouterr() == (out, "")


def test_a_file_of_a_samples_name_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sample_named(Path("azure_2023_conv")) is AZURE_2023_CONV
    (tmp_path / "azure_2023_conv").touch()
    assert sample_named(Path("azure_2023_conv")) is None
    assert sample_named(Path("nothing.csv")) is None
