"""One HTML page of everything that is kept under benchmarks/results.

It loads nothing from elsewhere and runs no script, so the file can be opened or sent as it is. A
file becomes the chapter of the benchmark that its `command` names; of any other file the fields are
listed. Reasons for what is missed are taken from README.md beside the files. Nothing is measured.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.fields import ResultsUnreadable, read_results
from benchmarks.report.page import page_of
from simulator.report.whole_file import replace_file

_RESULTS = Path(__file__).resolve().parents[1] / "results"
_EXAMPLES = """\
examples:
  python -m benchmarks.report
  python -m benchmarks.report --out figures.html
  python -m benchmarks.report --results my_results --out mine.html

The same files give the same bytes. Exit codes: 0 written, 1 a file cannot be read or written, 2
wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    about = "the page (default: report.html)"
    add("--out", type=Path, default=Path("report.html"), metavar="FILE", help=about)
    about = "where *.json and README.md are (default: benchmarks/results)"
    add("--results", type=Path, default=_RESULTS, metavar="DIR", help=about)
    args = parser.parse_args(argv)
    try:
        files = read_results(args.results)
        if not files:
            raise ResultsUnreadable(str(args.results), "", "holds no *.json")
        text = args.results / "README.md"
        page = page_of(files, text.read_text(encoding="utf-8") if text.exists() else "")
        replace_file(args.out, page)
    except (ResultsUnreadable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written to {args.out}: {len(files)} files of results, {len(page) // 1024:,} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
