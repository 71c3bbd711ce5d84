"""What operators see and change: the Admin service and what it needs."""
