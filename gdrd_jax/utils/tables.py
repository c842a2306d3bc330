"""Tables of text cells for a terminal, Markdown and HTML."""

import html
from collections.abc import Container, Mapping, Sequence

Lines = Sequence[Sequence[str]]  # the first is the heading; all of one length


def text_table(lines: Lines) -> str:
    """Columns aligned for a terminal: the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths)))
        for line in lines
    )


def markdown_table(lines: Lines) -> str:
    """A Markdown table, with a newline at the end."""
    heading, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in [heading, ["---"] * len(heading), *rest])


def html_table(lines: Lines, notes: Mapping[tuple[int, int], str], quoted: Container[int] = ()) -> str:
    """An HTML table whose first row below the heading is of the class "first".

    Args:
      lines: plain text, escaped here.
      notes: small print under a cell, by the numbers of its line and column.
      quoted: numbers of columns with others' figures, whose cells are of the class "quoted".
    """
    rows = []
    for number, line in enumerate(lines):
        tag, kind = ("td" if number else "th"), (" class=first" if number == 1 else "")
        cells = [
            f"<{tag}{' class=quoted' if i in quoted else ''}>{html.escape(cell)}"
            + (f"<span>{html.escape(notes[number, i])}</span>" if (number, i) in notes else "")
            for i, cell in enumerate(line)
        ]
        rows.append(f"<tr{kind}>" + "".join(f"{cell}</{tag}>" for cell in cells) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(rows) + "</table></div>"


def size_text(count: int) -> str:
    """A number of bytes as text, in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
