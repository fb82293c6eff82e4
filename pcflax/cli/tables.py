"""Tables on the screen, the same for every verb."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from pcflax.training.loggers import plain_console


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text; numbers, which are all columns but those that end in a space, to the right."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column.strip(), justify="left" if column.endswith(" ") else "right")
    for row in rows:
        table.add_row(*row)
    plain_console().print(table)
