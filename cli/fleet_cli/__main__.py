"""`python -m fleet_cli` is `fleet-twin`."""

from fleet_cli import main

if __name__ == "__main__":
    main.main()
