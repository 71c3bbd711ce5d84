"""Plots are real pictures of the stated size, for every kind of run, in light and in dark."""

import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from simulator.metrics.summary import RunResult
from simulator.metrics.testing import InventedRun
from simulator.metrics.time_bins import Series
from simulator.report.canvas import HEIGHT_PX, WIDTH_PX, Look
from simulator.report.palette import DARK, LIGHT
from simulator.report.plots import PLOTS, Picture, pictures, write_pictures
from simulator.report.scenes import scenes
from simulator.report.time_plots import thinned

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WITHOUT_MATPLOTLIB = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())

from simulator.metrics.summary import summary
from simulator.metrics.testing import InventedRun
from simulator.report.canvas import PlotsUnavailable
from simulator.report.json_file import report_json
from simulator.report.page import report_page
from simulator.report.text_table import text_table

results = [InventedRun(num_requests=5).result()]
assert report_json(results) and text_table([summary(one) for one in results])
try:
    report_page(results)
except PlotsUnavailable as error:
    print(error)
"""


def runs(*rate_scales: float) -> list[RunResult]:
    return [
        InventedRun(policy, 30, rate_scale, token_s).result()
        for rate_scale in rate_scales
        for policy, token_s in (("default", 0.01), ("fcfs", 0.02))
    ]


def size_of(png: bytes) -> tuple[int, int]:
    """Checks the picture as far as can be done without a decoder; returns width and height."""
    assert png.startswith(SIGNATURE)
    at, sizes, data = len(SIGNATURE), (0, 0), b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack(">I", png[at + 8 + length : at + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        if kind == b"IHDR":
            sizes = struct.unpack(">II", body[:8])
        if kind == b"IDAT":
            data += body
        at += 12 + length
    # Some rows of some pixels, each with a byte for its filter.
    assert len(zlib.decompress(data)) > sizes[0] * sizes[1]
    return sizes


@pytest.fixture(scope="module")
def drawn() -> list[Picture]:
    """Every plot of two policies at two rates."""
    return pictures(runs(0.5, 1.0))


def test_every_plot_is_a_picture_of_the_stated_size(drawn: list[Picture]) -> None:
    assert [picture.name for picture in drawn] == [plot.name for plot in PLOTS]
    assert {size_of(picture.png) for picture in drawn} == {(WIDTH_PX, HEIGHT_PX)}
    assert all(picture.caption.endswith(".") for picture in drawn)


def test_one_rate_has_no_plot_over_rates() -> None:
    assert pictures(runs(1.0), plots=PLOTS[:1]) == []


def test_the_same_runs_give_the_same_pictures_and_the_dark_ones_differ(
    drawn: list[Picture],
) -> None:
    again = pictures(runs(0.5, 1.0), plots=PLOTS[:2])
    assert again == drawn[:2]
    dark = pictures(runs(0.5, 1.0), DARK, PLOTS[:2])
    assert [night.name for night in dark] == [day.name for day in again]
    assert all(day.png != night.png for day, night in zip(again, dark, strict=True))


def test_runs_with_nothing_in_them_are_drawn_without_complaint() -> None:
    empty = InventedRun(num_requests=0).result()
    single = InventedRun(num_requests=1).result()
    assert {size_of(picture.png) for picture in pictures([empty])} == {(WIDTH_PX, HEIGHT_PX)}
    assert {size_of(picture.png) for picture in pictures([single])} == {(WIDTH_PX, HEIGHT_PX)}


def test_each_trace_has_pictures_of_its_own() -> None:
    other = InventedRun(num_requests=20, trace="another").result()
    names = {one.name for one in pictures([*runs(1.0), other], plots=PLOTS[1:2])}
    assert names == {"ttft", "ttft-2"}


def test_pictures_become_files(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "plots", runs(1.0)[:1])
    assert [path.suffix for path in paths] == [".png"] * len(paths)
    assert all(path.read_bytes().startswith(SIGNATURE) for path in paths)


def test_details_are_of_the_highest_rate_that_some_policy_serves() -> None:
    (scene,) = scenes(runs(0.1, 0.2, 50.0))
    attained = [result.slo_attainment for line in scene.lines for result in line.results]
    assert max(attained[2::3]) < 0.9 <= max(attained[1::3])
    assert scene.rate_scale == 0.2


def test_many_lines_can_still_be_told_apart() -> None:
    looks = [(look.color, look.linestyle) for look in (Look.of(LIGHT, n) for n in range(32))]
    assert len(set(looks)) == 32
    assert len(LIGHT.lines) == len(DARK.lines)


def test_a_line_over_time_is_thinned_to_means() -> None:
    thin = thinned(Series(0.5, (1.0, 3.0, 5.0, 7.0, 9.0)), max_points=3)
    assert thin == Series(1.0, (2.0, 6.0, 9.0))
    assert thinned(thin, max_points=3) is thin
    gaps = thinned(Series(0.5, (math.nan, 3.0, math.nan, math.nan)), max_points=2)
    assert gaps.values[0] == 3.0
    assert math.isnan(gaps.values[1])


def test_without_matplotlib_table_and_json_work_and_plots_say_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_MATPLOTLIB],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "matplotlib" in done.stdout
    assert "make install" in done.stdout
