"""Times for people: as many digits as matter, in as little room as possible."""

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def brief(seconds: float) -> str:
    """12ms, 3.2s, 4m05s, 2h10m, 3d04h."""
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    if seconds < 0.9995:
        return f"{sign}{seconds * 1e3:.0f}ms"
    if seconds < 99.95:
        return f"{sign}{seconds:.1f}s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{sign}{whole // _MINUTE_S}m{whole % _MINUTE_S:02}s"
    if whole < _DAY_S:
        return f"{sign}{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S:02}m"
    return f"{sign}{whole // _DAY_S}d{whole % _DAY_S // _HOUR_S:02}h"
