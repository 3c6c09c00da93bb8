"""The HTTP API: questions about twins, answered from the table. It changes nothing, and asks through `directory` only."""
