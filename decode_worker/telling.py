"""What routers are told of the tokens of running answers."""

from decode_worker.generation_task import GenerationTask
from decode_worker.settings import NO_CONTENT
from scheduling.messages import TokensEmitted
from scheduling.worker_events import SampledOutput, SendReport, WorkerAction


def told(task: GenerationTask, output: SampledOutput) -> SendReport:
    """The newest token, and those before it that were only counted."""
    first, num_untold = len(task.output_token_ids), task.take_untold() - 1
    if num_untold <= 0:
        task.output_token_ids.append(output.token_id)
        return SendReport(task.session_id, output.as_report(task.task_id, first))
    untold = (NO_CONTENT,) * num_untold
    task.output_token_ids += (*untold, output.token_id)
    return SendReport(task.session_id, output.as_report(task.task_id, first, untold))


def told_untold(task: GenerationTask) -> list[WorkerAction]:
    """Tokens that were only counted become known before anything else is said of the answer."""
    first, untold = len(task.output_token_ids), (NO_CONTENT,) * task.take_untold()
    if not untold:
        return []
    task.output_token_ids += untold
    return [SendReport(task.session_id, TokensEmitted(task.task_id, first, untold, ""))]
