"""Between the public messages and what the router works with: all of protobuf is in here."""
