"""Until when an answer whose KV waits in host memory lets newcomers go before it. Pure.

Room goes to whoever is due first: a newcomer by its next token, a parked answer when half of the
time is over that it was ahead of its goal. The other half is for its way back: it gets room only
when others end. That instant is fixed while it waits, also where it has no goal, so whoever comes
later goes after it, and it is overtaken for a while only.
"""

# Whoever reads the answer sees it stand still.
MAX_OVERTAKEN_S = 600.0


def parked_due_at_s(parked_at_s: float, token_due_at_s: float) -> float:
    """When it goes before all newcomers, who made room then and whose next token is due then."""
    slack_s = max(0.0, token_due_at_s - parked_at_s)
    return parked_at_s + min(slack_s / 2, MAX_OVERTAKEN_S)


def is_before_parked(due_at_s: float, first_parked_due_at_s: float, now: float) -> bool:
    """Whether a newcomer goes before the parked answer that is due first.

    Who is late is due now: it goes before those with time left, and behind those without.
    """
    return max(due_at_s, now) < first_parked_due_at_s
