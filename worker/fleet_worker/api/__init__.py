"""HTTP over what the worker knows: queries, health, metrics. It reads; nothing here changes a twin."""
