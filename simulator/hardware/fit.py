"""Writes the hardware descriptions anew from published tables and our own measurements.

    python -m simulator.hardware.fit PROFILES [--only NAME ...] [--out FOLDER] [--compare]

Prints how far each model is from each table it was fitted to; `--compare` also fits other forms, to
four fifths of the rows at a time, and prints the errors of all on the rows they did not see.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scheduling.batch_time import BatchTime
from scheduling.batch_time_fit import FitError, MeasuredBatch, fit_error, relative_errors
from simulator.hardware import composed
from simulator.hardware.alternatives import FITS, fit_chosen
from simulator.hardware.description import FOLDER, BatchTimePart, Hardware, TableError
from simulator.hardware.profiles import Phases, ProfileMissing
from simulator.hardware.recipes import RECIPES, Prepared

# Forms are compared on rows held out, each fifth of them in turn.
_NUM_FOLDS = 5
_REPLAYED = "seconds of a recorded run"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model and how far it is from each table."""

    model: BatchTime
    errors: tuple[tuple[str, FitError], ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 when a table is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Verbatim)
    parser.add_argument("profiles", type=Path, help="folder of the timing tables")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the files go")
    parser.add_argument("--compare", action="store_true", help="print other forms' errors as well")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for name in args.only:
            prepared = RECIPES[name](args.profiles)
            fitted = fit(prepared)
            (args.out / f"{name}.json").write_text(as_text(describe(name, prepared, fitted)))
            _print_errors(name, fitted)
            if args.compare:
                _print_comparison(name, whole_passes(prepared))
    except ProfileMissing as error:
        print(f"simulator.hardware.fit: {error}", file=sys.stderr)
        return 1
    return 0


def fit(prepared: Prepared) -> Fitted:
    """The chosen form over all rows, each phase as heavy as any other, with what engines add."""
    phases = whole_passes(prepared)
    model = fit_chosen(balanced(phases))
    errors = [(kind, fit_error(model, rows)) for kind, rows in phases.items() if rows]
    if prepared.replayed:
        errors.append((_REPLAYED, fit_error(model, prepared.replayed)))
    return Fitted(_rounded(model), tuple(errors))


def whole_passes(prepared: Prepared) -> Phases:
    """The rows, and where they are operators only, with what a recorded run took beyond them."""
    if not prepared.replayed:
        return prepared.phases
    beyond = composed.find_overhead(
        fit_chosen(balanced(prepared.phases)),
        prepared.replayed,
        has_communication=prepared.has_communication,
    )
    return beyond.added_to(prepared.phases)


def balanced(phases: Phases) -> list[MeasuredBatch]:
    """All rows, weighted so that each phase counts the same."""
    return [replace(row, weight=row.weight / len(rows)) for rows in phases.values() for row in rows]


def describe(name: str, prepared: Prepared, fitted: Fitted) -> Hardware:
    """The file's content."""
    return Hardware(
        name=name,
        model=prepared.model,
        gpus_per_worker=prepared.gpus_per_worker,
        source=prepared.source,
        assumed=prepared.assumed,
        batch_time=BatchTimePart.of(fitted.model),
        kv=prepared.kv,
        limits=prepared.limits,
        transfer=prepared.transfer,
        transfer_between_nodes=prepared.transfer_between_nodes,
        swap=prepared.swap,
        errors=tuple(
            TableError(
                table=table,
                num_rows=error.num_rows,
                median_relative_error=round(error.median, 4),
                p90_relative_error=round(error.p90, 4),
            )
            for table, error in fitted.errors
        ),
    )


def as_text(hardware: Hardware) -> str:
    """Readable JSON with a line end."""
    return json.dumps(hardware.model_dump(mode="json"), indent=1) + "\n"


def compare(phases: Phases) -> dict[str, dict[str, FitError]]:
    """form -> phase -> error, each row predicted by a fit that did not see it."""
    found = {}
    for form, fit_form in FITS.items():
        errors: dict[str, list[float]] = {kind: [] for kind, rows in phases.items() if rows}
        for fold in range(_NUM_FOLDS):
            seen = {
                kind: [row for i, row in enumerate(rows) if i % _NUM_FOLDS != fold]
                for kind, rows in phases.items()
            }
            model = fit_form(balanced(seen))
            for kind in errors:
                errors[kind] += relative_errors(model, phases[kind][fold::_NUM_FOLDS])
        found[form] = {kind: FitError.of(values) for kind, values in errors.items()}
    return found


def _rounded(model: BatchTime) -> BatchTime:
    # Six digits are more than any table gives, and files stay readable.
    coefficients = [float(f"{x:.6g}") for x in model.coefficients()]
    return BatchTime.from_coefficients(coefficients, model.bend_starts)


def _print_errors(name: str, fitted: Fitted) -> None:
    for table, error in fitted.errors:
        print(
            f"{name:24} {table:26} {error.num_rows:6d} rows  "
            f"median {error.median:6.1%}  p90 {error.p90:6.1%}"
        )


def _print_comparison(name: str, phases: Phases) -> None:
    for form, error_by_kind in compare(phases).items():
        told = "  ".join(
            f"{kind} {error.median:.1%} / {error.p90:.1%}" for kind, error in error_by_kind.items()
        )
        print(f"{name:24} held out, {form:42} {told}")


class _Verbatim(argparse.RawDescriptionHelpFormatter):
    """Keeps the command line of the description on a line of its own."""


if __name__ == "__main__":
    sys.exit(main())
