"""Which policy a process decides by: the same settings for routers and workers of every kind."""

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from runtime.errors import ConfigError
from scheduling.policies import POLICIES
from scheduling.policy_settings import PolicyInvalid, joined, policy_of

Changes = Annotated[tuple[str, ...], Field(max_length=64)]


class PolicyConfig(BaseModel):
    """Give all processes of a cluster the same: routers tell of workers that have another."""

    policy: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="scheduling policy; give every process of a cluster the same",
        examples=["fcfs"],
    )
    policy_set: Changes = Field(
        (),
        description="choices of the policy that are made otherwise, each as field=value; the same "
        "in every process",
        examples=["victims=last-arrived,growth_reserve=0.05"],
    )

    @property
    def policy_name(self) -> str:
        """The policy with all that is changed of it, for `policy_of`."""
        name = joined(self.policy, self.policy_set)
        # Processes compare names: the same changes in another order are the same.
        return policy_of(name).name if self.policy in POLICIES else name

    @model_validator(mode="after")
    def _policy_can_be_changed_so(self) -> Self:
        if self.policy in POLICIES:  # else the process that starts says what there is
            policy_of(joined(self.policy, self.policy_set))
        return self


def check_policy(config: PolicyConfig) -> None:
    """Raises: ConfigError where there is no such policy, or it must know the future."""
    known = [name for name, policy in POLICIES.items() if not policy.needs_foresight]
    if config.policy not in known:
        raise ConfigError(f"policy {config.policy!r} is unknown; use one of {', '.join(known)}")
    try:
        policy = policy_of(config.policy_name)
    except PolicyInvalid as error:
        raise ConfigError(f"policy_set: {error}") from error
    if policy.needs_foresight:
        raise ConfigError(
            f"policy_set: predictor {policy.predictor} must be told how long answers will be, "
            "which only a simulation can; use another predictor"
        )
