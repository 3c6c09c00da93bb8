"""What `fleet-twin checkpoint` is made of: the bucket opened, checkpoints listed, verified and exported."""
