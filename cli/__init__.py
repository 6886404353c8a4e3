"""Everything that one can start: the client's commands and, under `daemon`, the composition root of the server."""
