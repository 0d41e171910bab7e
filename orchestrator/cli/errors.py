"""How a command fails: one line that says what to do next, and an exit code that scripts can rely on."""

from __future__ import annotations

EXIT_REFUSED = 1
"""The network, or the machine, said no to something that was asked properly."""
EXIT_USAGE = 2
"""What was asked, or the configuration, is wrong; the same code that the option parser uses."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count it."""


class CliError(Exception):
    """Ends the command with one line on standard error."""

    def __init__(self, message: str, exit_code: int = EXIT_REFUSED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def usage_error(message: str) -> CliError:
    """The caller has to change what was typed or configured."""
    return CliError(message, EXIT_USAGE)
