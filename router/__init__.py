"""The service that owns the PT (prefill) and GT (decode) queues."""
