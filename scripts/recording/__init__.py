"""What `scripts/recorded` runs: the calls into undust, their inputs, the cases, the hashes."""
