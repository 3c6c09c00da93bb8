"""The words both sides share: fleet spec, rules, hash ranges, positions. Pure: no I/O, no clock, no randomness."""
