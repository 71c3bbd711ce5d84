"""Request traces: every format that we read, as one kind of workload."""
