"""The HTTP API. Read needs, door, edge, then the routes by noun, then app, which puts them together."""
