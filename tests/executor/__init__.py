"""Executors: one contract for all, and what only real processes can show."""
