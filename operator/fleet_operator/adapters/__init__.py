"""The outside, one thing each: the API server, Kinesis, workers. They raise only `errors`, and decide nothing."""
