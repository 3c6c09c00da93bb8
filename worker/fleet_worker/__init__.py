"""The stream processor: telemetry in, twins, alerts and commands out."""
