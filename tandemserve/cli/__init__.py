"""The command `tandem`: one file per group of commands. Nothing here is imported by the SDK."""
