"""The commands of `share4v` as data: adding a command is adding a file and a row of `COMMANDS`."""

from .caption import CAPTION
from .chat import CHAT
from .convert import CONVERT
from .rows import Argument, Command

__all__ = ["COMMANDS", "Argument", "Command"]

COMMANDS = (CAPTION, CHAT, CONVERT)
