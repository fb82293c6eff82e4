"""Tables on the screen, the same for every verb."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from pcflax.training.loggers import plain_console


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text; numbers, which are all columns but those that end in a space, to the right."""
    table, console = Table(), plain_console()
    for column in columns:
        justify = "left" if column.endswith(" ") else "right"
        # on a narrow terminal a cell goes on in the next line: no digit is left out
        table.add_column(column.strip(), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(title, style="italic", soft_wrap=True)
    console.print(table)
