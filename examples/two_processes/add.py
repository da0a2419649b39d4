"""Another program adds e-mails: it knows nothing of Planton."""

import sqlite3
import sys

TABLE = """
    CREATE TABLE IF NOT EXISTS mail (
        id INTEGER PRIMARY KEY, address TEXT NOT NULL, claimed_at REAL,
        sent INTEGER NOT NULL DEFAULT 0, began_at REAL, sent_at REAL, sent_by INTEGER
    )
"""

connection = sqlite3.connect("mails.db", timeout=10)
with connection:
    connection.execute(TABLE)
    connection.executemany("INSERT INTO mail (address) VALUES (?)", [[a] for a in sys.argv[1:]])
connection.close()
