"""What every process needs: configuration, clock, logging, telemetry, gRPC server, drain."""
