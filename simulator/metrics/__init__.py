"""What a simulated run was like: requests, latencies, KVC and queues, in bounded memory."""
