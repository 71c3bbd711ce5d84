"""The cluster's shared state in Redis: who is there (membership) and who holds KVC (the ledger)."""
