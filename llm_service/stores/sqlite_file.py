"""The file of the SQLite store: opened, or made, and refused where it is not ours."""

import os
import sqlite3
from pathlib import Path
from time import monotonic, sleep

from llm_service.errors import ConfigurationError

# Of the tables below, in SQLite's own `user_version`; `application_id` says whose the file is ("FTlk").
VERSION = 1
APPLICATION = 0x46546C6B
_TABLES = """
CREATE TABLE IF NOT EXISTS records (id TEXT PRIMARY KEY, record BLOB NOT NULL, until REAL NOT NULL);
CREATE INDEX IF NOT EXISTS records_until ON records (until);
CREATE TABLE IF NOT EXISTS claims (id TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS claims_until ON claims (until);
CREATE TABLE IF NOT EXISTS asks (owner TEXT, id TEXT, until REAL NOT NULL, PRIMARY KEY (owner, id)) WITHOUT ROWID;
"""
# Files up to this size, in bytes, are looked through at the start: that takes about a second.
_CHECKED_UP_TO = 268_435_456
# What the log beside the file is cut back to, in bytes.
_WAL_BYTES = 67_108_864
_TRY_AGAIN_SECONDS = 0.02


def open_file(path: str, *, timeout: float) -> sqlite3.Connection:
    """Open the file, or make it with its folder; another process that does so now is waited for, `timeout` seconds.

    Only the service's own user may read what is made: it holds conversations.

    Raises:
        ConfigurationError: it cannot be opened, is damaged or another program's, or was written by a newer version.
    """
    until = monotonic() + timeout
    while True:
        try:
            return _open(path, timeout)
        except sqlite3.OperationalError as error:
            # Changing to WAL does not wait by itself while another process does it.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > until:
                raise _refusal(path, str(error)) from None
            sleep(_TRY_AGAIN_SECONDS)
        except (sqlite3.Error, OSError) as error:
            raise _refusal(path, error.strerror if isinstance(error, OSError) else str(error)) from None


def _open(path: str, timeout: float) -> sqlite3.Connection:
    file = Path(path).absolute()  # SQLite gives some names a meaning of their own
    file.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    # Statements are their own transactions. Another process that writes is waited for a little shorter than a call.
    database = sqlite3.connect(file, timeout=timeout * 0.8, isolation_level=None, check_same_thread=False)
    try:
        database.execute("BEGIN")  # what is looked at is of one moment, whoever makes the tables meanwhile
        _check(database, path)
        database.execute("COMMIT")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        # What is deleted is not left readable in the file.
        database.execute("PRAGMA secure_delete = ON")
        database.execute("BEGIN IMMEDIATE")
        for statement in _TABLES.strip().split("\n"):
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION}")
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection, path: str) -> None:
    application, version, pages, page_size = (
        database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version", "page_count", "page_size")
    )
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != APPLICATION:
        raise _refusal(path, "it is the database of another program")
    if version > VERSION:
        raise ConfigurationError(
            f"SQLITE_PATH={path}: the file was written by a newer version of this service (its tables have version "
            f"{version}, this one knows {VERSION}); name another file or run the newer version"
        )
    if pages * page_size <= _CHECKED_UP_TO and database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise _refusal(path, "the file is damaged")


def _refusal(path: str, why: str | None) -> ConfigurationError:
    return ConfigurationError(
        f"SQLITE_PATH={path}: {why or 'it cannot be opened'}; name a file in a folder that can be written to, "
        "or move this one away"
    )
