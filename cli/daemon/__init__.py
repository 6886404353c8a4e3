"""The server side: settings, the composition root, the migrations. Loaded only by `serve`, `demo` and `admin` verbs that need it."""
