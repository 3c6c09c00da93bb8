"""The control loop outside Kubernetes: what the operator does in it, over a control folder.

    loop (observe, decide by fleet_model, write) · edits (rules generations) · moves (what it comes to: who moved where, how long it paused)

It decides nothing itself: who should own what, and each step of a hand-off, is fleet_model's.
"""
