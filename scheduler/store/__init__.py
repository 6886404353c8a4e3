"""The scheduler's only SQL: tables, the database and its lease, reading, writing."""
