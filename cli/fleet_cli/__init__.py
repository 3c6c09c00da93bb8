"""The command `fleet-twin`: what a person types. It wires the rooms below together and decides nothing itself."""
