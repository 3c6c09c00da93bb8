"""Believable devices with seeded faults, and the producer that puts their telemetry on the stream.

    schedule (who speaks when) → devices (what they measure) → encoding (how they say it) → producer (PutRecords)
    commands stream → commands (the devices react)

Everything but `producer` and `runner` is pure: the same seed gives the same telemetry, whatever the machine's speed.
"""
