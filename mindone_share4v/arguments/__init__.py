"""The commands of `share4v` as data: adding a command is adding a file and a row of `COMMANDS`."""

from .caption import CAPTION
from .caption_dataset import CAPTION_DATASET
from .chat import CHAT
from .command import Argument, Command
from .conversion import CONVERT
from .report import REPORT
from .score import SCORE

__all__ = ["COMMANDS", "Argument", "Command"]

COMMANDS = (CAPTION, CAPTION_DATASET, CHAT, CONVERT, REPORT, SCORE)
