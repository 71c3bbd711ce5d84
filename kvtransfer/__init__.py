"""KV blocks between processes: what to copy (plan), how it is agreed (protocol), the transports."""
