"""Watching, as far as it goes without an API server: how it ends."""

from __future__ import annotations

from fleet_operator import cache, clock, handlers


def test_watches_that_never_began_can_be_stopped() -> None:
    """The operator stops them whatever kept it from starting; another error here would hide that one."""
    scope = handlers.Scope((), ("depot", "lease"))
    watches = handlers.Watches(scope, cache.Cache(), clock.SystemClock(), lambda: None, lambda: None)
    watches.stop()
    assert watches.down_since_s is not None
