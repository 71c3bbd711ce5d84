"""What a router makes of its settings: the policy, and the numbers that its core decides by."""

from router.command_frames import max_sequence_tokens
from router.core_setup import CoreSetup
from router.state import RouterSettings
from runtime.config import RouterConfig
from runtime.errors import StartupError
from scheduling.ids import Incarnation
from scheduling.policies import POLICIES
from scheduling.policy_settings import PolicyInvalid, policy_of


def check_policy(config: RouterConfig) -> None:
    """Raises: StartupError where there is no such policy, or it must know the future."""
    known = [name for name, policy in POLICIES.items() if not policy.needs_foresight]
    if config.policy not in known:
        raise StartupError(f"policy {config.policy!r} is unknown; use one of {', '.join(known)}")
    try:
        policy = policy_of(config.policy_name)
    except PolicyInvalid as error:
        raise StartupError(f"policy_set: {error}") from error
    if policy.needs_foresight:
        raise StartupError(
            f"policy_set: predictor {policy.predictor} must be told how long answers will be, "
            "which only a simulation can; use another predictor"
        )


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
