"""What several tests build with; no tests in here."""
