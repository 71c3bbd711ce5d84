"""A router with one mixed worker on which prompts and answers get room apart, for tests."""

from collections.abc import Iterable
from dataclasses import replace

from router.events import Action, Extend, ExtensionAnswered
from router.state import RouterSettings
from router.testing import CoreUnderTest, commands, hello_of, of_type, spec_of, tokens
from scheduling.ids import TaskId
from scheduling.lifecycle import Phase
from scheduling.messages import AdmitPrompt, PrefillStarted, TaskReleased
from scheduling.policies import POLICIES
from scheduling.policy import Policy, Sharing

# As a goal, so that answers of all lengths are due in one bucket, and what comes next decides.
AT_ONCE = 1e-4
MIXED = "mixed-0"
ALONE = replace(POLICIES["ecoserve"], sharing=Sharing.NONE)


def new_core(
    num_blocks: int = 32, num_reserve: int = 4, policy: str | Policy = ALONE
) -> CoreUnderTest:
    """Blocks of 4 tokens; so many of the mixed worker's are for prompts and for growth."""
    mixed = hello_of(MIXED, num_blocks, num_growth_blocks=num_reserve)
    settings = RouterSettings(length_quantum_tokens=4)
    return CoreUnderTest([mixed], settings, policy)


def task_of(core: CoreUnderTest, name: str) -> TaskId:
    return core.task_id(request_id=name)


def phase_of(core: CoreUnderTest, name: str) -> Phase:
    return core.core.state.sequence_by_task[task_of(core, name)].phase


def ask(core: CoreUnderTest, name: str, num_prompt: int, max_tokens: int) -> list[AdmitPrompt]:
    """The prompts that the worker gets then."""
    sent = commands(core.ask(spec_of(name, num_prompt, max_tokens, tpot_s=AT_ONCE)))
    return [command for _, command in sent if isinstance(command, AdmitPrompt)]


def compute(core: CoreUnderTest, name: str) -> list[Action]:
    """The worker computed the prompt."""
    task = task_of(core, name)
    return core.report(MIXED, PrefillStarted(task), tokens(task, 0, 1))


def extensions(actions: Iterable[Action]) -> list[tuple[str, int]]:
    """Which request's answer asks for how many blocks."""
    return [
        (each.claim.task_id.partition("/")[0], each.num_blocks) for each in of_type(actions, Extend)
    ]


def answer(core: CoreUnderTest, actions: Iterable[Action], *, granted: bool = True) -> list[Action]:
    """The ledger's word on all extensions among them; what follows."""
    found: list[Action] = []
    for extend in of_type(actions, Extend):
        found += core.tell(ExtensionAnswered(extend.claim, extend.num_blocks, granted))
    return found


def running(core: CoreUnderTest, name: str, num_prompt: int, max_tokens: int) -> None:
    """It decodes, with room for all of it."""
    ask(core, name, num_prompt, max_tokens)
    answer(core, compute(core, name))
    assert phase_of(core, name) is Phase.DECODING


def end(core: CoreUnderTest, name: str) -> list[Action]:
    """It is over, and its room comes back."""
    task = task_of(core, name)
    num_output = len(core.core.state.sequence_by_task[task].output_token_ids)
    return core.report(MIXED, tokens(task, num_output, 9, finish="stop"), TaskReleased(task))
