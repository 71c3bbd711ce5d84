"""Which workers an operator may close: somebody must be left who can take their place."""

import pytest

from router.admin.worker_admission import require_successor, worker_away
from router.testing import CoreUnderTest, hello_of
from scheduling.errors import LastWorker
from scheduling.messages import Admission, WorkerLoad


def close(name: str, *others: str, closed: tuple[str, ...] = ()) -> None:
    """Ask whether `name` may be closed beside these."""
    core = CoreUnderTest(tuple(hello_of(each) for each in (name, *others)))
    for each in closed:
        core.report(each, load=WorkerLoad(16, 0, 0, 0, admission=Admission.CORDONED))
    state = core.core.state
    (view,) = (view for view in state.fleet if view.hello.worker_id == name)
    require_successor(state, view)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("decode-0", ("prefill-0", "decode-1")),
        ("prefill-0", ("prefill-1", "decode-0")),
        ("mixed-0", ("mixed-1",)),
        # A mixed worker takes the place of any, a pair takes its place.
        ("decode-0", ("prefill-0", "mixed-0")),
        ("prefill-0", ("decode-0", "mixed-0")),
        ("mixed-0", ("prefill-0", "decode-0")),
    ],
)
def test_a_worker_whose_place_others_take_may_be_closed(name: str, others: tuple[str, ...]) -> None:
    close(name, *others)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("decode-0", ("prefill-0",)),
        ("prefill-0", ("decode-0", "decode-1")),
        ("mixed-0", ()),
        # Nobody would compute prompts.
        ("mixed-0", ("decode-0",)),
    ],
)
def test_the_last_of_its_kind_is_named_by_its_own_role(name: str, others: tuple[str, ...]) -> None:
    role = name.partition("-")[0]
    with pytest.raises(LastWorker, match=f"{name} is the last open {role} worker of its kind"):
        close(name, *others)


def test_a_closed_worker_takes_nobodys_place() -> None:
    with pytest.raises(LastWorker):
        close("mixed-0", "mixed-1", closed=("mixed-1",))


@pytest.mark.parametrize(
    ("state", "problem", "told"),
    [
        (
            "connecting",
            "",
            "worker decode-0 is connecting: it has no tasks from here yet, and it cannot be "
            "told anything; try again when `tandem admin workers` shows it ready",
        ),
        (
            "lost",
            "its stream broke",
            "worker decode-0 is lost (its stream broke): its tasks go on elsewhere, and it cannot "
            "be told anything; stop its process if there is one, or try again when `tandem admin "
            "workers` shows it ready",
        ),
        (
            "incompatible",
            "serves another model",
            "worker decode-0 is incompatible (serves another model): it gets no tasks from here, "
            "and it cannot be told anything; stop it, or start it again as the problem says",
        ),
    ],
)
def test_a_worker_that_cannot_be_told_is_named_with_what_is_the_case(
    state: str, problem: str, told: str
) -> None:
    assert worker_away("decode-0", state, problem).message == told
