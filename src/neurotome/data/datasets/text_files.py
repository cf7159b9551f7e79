"""Text that others have written: JSON files, tables, and the names, ids and cells taken from them.

What comes in here is checked once: text is UTF-8, a cell that stands for a missing value is none, and ids and names
are on one line without control characters, so that they can stand in tables, messages and file names.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurotome.errors import InputError, printable
from neurotome.files.json_text import parse_json
from neurotome.files.verified import VerifiedStream

# a larger file is no table or sidecar
MAX_TEXT_BYTES = 256 << 20
# how BIDS, R, Python and spreadsheets write that a value is missing
MISSING = ("", "n/a", "na", "nan", "none", "null")


def cell_value(text: str) -> str | None:
    """Return a cell of a table, None where it stands for a missing value (``n/a``, ``NaN``, an empty cell)."""
    return None if text.strip().casefold() in MISSING else text.strip()


def one_line(text: str) -> str:
    r"""Return an id or a name with control characters, line breaks and broken bytes escaped, such as ``\x1b``."""
    return text if text.isprintable() else printable(text)


def site_name(value: Any, file: Path) -> str | None:
    """Return the name of a site from the JSON value of ``Site``, None where it is missing.

    Raises:
        InputError: Neither a text nor a number.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:g}"
    if isinstance(value, str) or value is None:
        return cell_value(value or "")
    raise InputError(f"Site is {type(value).__name__}, not a text", file=file, remedy="write the site's name")


def read_json(path: Path, *, finite: bool = False, remedy: str = "repair or remove the sidecar") -> dict[str, Any]:
    """Return a JSON object.

    Args:
        path: The file.
        finite: Whether to refuse NaN and infinity, which some converters write into sidecars.
        remedy: What to do about a file that is damaged.

    Raises:
        InputError: Not readable, not JSON, or not an object.
    """
    try:
        value = parse_json(read_text(path), finite=finite)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"not valid JSON ({error})", file=path, remedy=remedy) from error
    if not isinstance(value, dict):
        raise InputError("a JSON object is expected", file=path, remedy=remedy)
    return value


def read_text(path: Path) -> str:
    """Return the text of a regular UTF-8 file, without a byte order mark.

    Raises:
        InputError: Not a regular file, too large, or not UTF-8.
    """
    with VerifiedStream(path, compressed=False) as stream:
        data = stream.read_rest(MAX_TEXT_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", file=path, remedy="save it as UTF-8") from error


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns of a TSV or CSV file and its rows with their line numbers; cells are text, never evaluated.

    Raises:
        InputError: Empty, a NUL byte, a column twice, or a row of the wrong length; the message names the line.
    """
    rows = table_rows(path)
    _, header = next(rows)
    return header, [(number, dict(zip(header, cells, strict=True))) for number, cells in rows]


def table_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the header and the rows of a TSV or CSV file, each with the number of its (first) line.

    Raises:
        InputError: Empty, a NUL byte, a column twice, or a row of the wrong length; the message names the line.
    """
    text = read_text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"line {line}: a NUL byte", file=path, remedy="save it as plain UTF-8 text")
    tabs = path.name.lower().endswith(".tsv")
    # in a BIDS table a quotation mark is a character like any other
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    width, start = 0, 1
    try:
        for row in reader:
            cells, number, start = [cell.strip() for cell in row], start, reader.line_num + 1
            if not width:
                if not any(cells):
                    continue
                if twice := [name for name in cells if cells.count(name) > 1]:
                    reason = f"line {number}: column {twice[0]!r} occurs twice"
                    raise InputError(reason, file=path, remedy="rename or remove one of the two")
                width = len(cells)
            elif not any(cells):
                continue
            elif len(cells) != width:
                raise InputError(
                    f"line {number}: {len(cells)} cells where the header has {width} columns",
                    file=path,
                    remedy=f"separate the cells with {'tabs' if tabs else 'commas'}, one for every column",
                )
            yield number, cells
    except csv.Error as error:
        raise InputError(f"line {start}: {error}", file=path, remedy="close every quotation mark") from error
    if not width:
        raise InputError("an empty table", file=path, remedy="give a first line with the names of the columns")
