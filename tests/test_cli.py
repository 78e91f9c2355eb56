"""For tests that are still to import these from commands; no tests of its own."""

from commands import COMMAND as COMMAND
from commands import environment as environment
from commands import run as run
