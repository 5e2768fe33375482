"""The version of what this genqueue writes."""

from typing import Literal

VERSION: Literal[1] = 1
