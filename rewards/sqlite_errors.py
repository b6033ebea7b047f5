"""What Python raises for a SQLite file that cannot be used."""

import sqlite3

# The second one if SQLite's own message, which quotes the damaged file, is no text.
SQLITE_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)


def find_code(error: Exception) -> int:
    """SQLite's primary code of an error, for example `sqlite3.SQLITE_FULL`; 0 if there is none."""
    damaged = sqlite3.SQLITE_CORRUPT if isinstance(error, UnicodeDecodeError) else 0
    return getattr(error, "sqlite_errorcode", damaged) & 0xFF
