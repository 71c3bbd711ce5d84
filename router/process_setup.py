"""What a router makes of its settings: the policy, and the numbers that its core decides by."""

from router.command_frames import max_sequence_tokens
from router.core_setup import CoreSetup
from router.state import RouterSettings
from runtime.config import RouterConfig
from scheduling.ids import Incarnation


def core_setup_of(config: RouterConfig, incarnation: Incarnation, vocab_size: int) -> CoreSetup:
    """Enough to make the core of that life of the router, also from a recording."""
    settings = RouterSettings(
        config.max_prompt_queue,
        config.max_retries_per_task,
        max_sequence_tokens=max_sequence_tokens(config.max_message_bytes, vocab_size),
        task_tag=f"{config.router_id}.{incarnation:x}.",
    )
    return CoreSetup(
        config.policy_name,
        config.deadline_bucket_ms / 1e3,
        config.kvc_bucket_blocks,
        config.lending,
        settings,
    )
