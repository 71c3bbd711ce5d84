"""Errors of a process, not of a request: each ends the start-up in one line on stderr.

StartupError                   exit code 1
└── ConfigError                exit code 2
"""

from typing import ClassVar


class StartupError(Exception):
    """The process cannot begin or go on to serve. The message ends in what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(StartupError):
    """A setting is unknown, missing or outside its range."""

    exit_code = 2
