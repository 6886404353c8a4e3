"""The scheduler's only SQL. Read tables, database, lease, write, then the commands by noun, then read.

`write` commits commands, each with its rows, occupancy and events; `read` answers from a consistent snapshot. Only
`Writer` changes anything, one transaction at a time, and only while the leader's epoch stands.
"""
