"""The version of the SDK and the CLI; a test compares it with pyproject.toml."""

VERSION = "0.1.0"
