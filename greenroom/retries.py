"""When a job that failed is tried again, and when no more. Pure arithmetic, without a clock; the random number is given.

Must not know engine, lanes or leases.
"""

from __future__ import annotations

from greenroom.job import USUAL, Extras

#: Doubling so often is beyond every cap.
MOST_DOUBLINGS = 60


def next_try(extras: Extras | None, failures: int, failed_since: float, error_name: str, wish: float | bool | None, now: float,
             random: float) -> float | None:
    """Return when a job that has just failed is tried again, or None: never.

    Args:
        failures: how often it failed, this one included. failed_since: when it failed first.
        wish: what the task asked for: False: never; a time: then, if it may be tried again at all; None: nothing.
        random: 0 … 1, see `pause_s`.
    """
    policy = extras or USUAL
    if wish is False or error_name in policy.retry_never or (policy.retry_on and error_name not in policy.retry_on):
        return None
    at = max(now, wish) if wish is not None else now + pause_s(policy, failures, random)
    if policy.retry_for is not None:
        return at if at <= failed_since + policy.retry_for else None
    return at if failures < policy.attempts else None


def pause_s(policy: Extras, failures: int, random: float) -> float:
    """Return the seconds between the n-th failure and the next try.

    Args:
        random: with jitter, the part of the whole pause that is taken.
    """
    if policy.backoff == "none":
        return 0.0
    grown = {"fixed": 1, "linear": failures, "exponential": 2 ** min(failures - 1, MOST_DOUBLINGS)}[policy.backoff]
    whole = min(policy.backoff_cap, policy.backoff_base * grown)
    has_jitter = policy.backoff != "fixed" if policy.jitter is None else policy.jitter
    return whole * random if has_jitter else whole
