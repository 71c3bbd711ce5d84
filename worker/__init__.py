"""The shell around a worker's core: engine thread, router sessions, registration."""
