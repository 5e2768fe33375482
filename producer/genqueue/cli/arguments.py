"""Arguments that several commands take."""

from typing import Annotated

import typer

GenerationId = Annotated[str, typer.Argument(metavar="ID", help="As submit printed it.", show_default=False)]
