"""A simulated world around a run: see `docs/reliability.md`."""
