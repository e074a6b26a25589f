"""Reads the text files of data sets: lists, annotations, tables of lengths."""

from __future__ import annotations

import csv
import io

from iefvad.utils.csv_text import CsvRows
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, read_regular

LARGEST = 256 << 20
"""Maximum size of a text file in bytes. The longest list of the field has 5 MB."""


def read_text(path: PathLike, what: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark. Line ends stay as they are.

    Args:
        path: The file.
        what: What messages call the content of the file.

    Raises:
        UserError: The file is missing, cannot be read, is too large, is not UTF-8, or contains NUL bytes.
    """
    try:
        data = read_regular(path, LARGEST)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path of the {what}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read as {what}: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as {what}: {error}; check the path") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: cannot be read as {what}: byte 0x{data[error.start]:02x} is not UTF-8; save the file"
            " as UTF-8 text"
        ) from error
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise UserError(
            f"{path}, line {line}: cannot be read as {what}: it has NUL bytes, as damaged files and UTF-16 text have;"
            " restore it, or save it as UTF-8 text"
        )
    return text


def text_lines(path: PathLike, what: str) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not empty.

    Args:
        path: The file.
        what: What messages call the content of the file.

    Returns:
        (number from 1, stripped text) of each line.

    Raises:
        UserError: As for `read_text`.
    """
    lines = [(number, line.strip()) for number, line in enumerate(io.StringIO(read_text(path, what), newline=None), 1)]
    return [(number, line) for number, line in lines if line]


def csv_rows(path: PathLike, what: str) -> list[tuple[int, list[str]]]:
    """Read the rows of a CSV file, with the empty ones.

    Args:
        path: The file.
        what: What messages call the content of the file.

    Returns:
        (number of the row's last line from 1, cells) of each row. Cells are as they were before `csv_text` wrote them.

    Raises:
        UserError: As for `read_text`, or quotes do not match, or a cell is longer than 128 KiB.
    """
    reader = CsvRows(io.StringIO(read_text(path, what), newline=""), strict=True)  # else a lone quote joins rows
    try:
        return [(reader.line, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line}: cannot be read as {what}: {error}; mend this line") from error
