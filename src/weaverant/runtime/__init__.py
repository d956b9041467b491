"""What moves tasks: limits, the queue of calls, the stages' books, the ledger, progress, and the local swarm."""
