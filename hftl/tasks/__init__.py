"""Tasks, one a module of `text/` or `image/`; `Task.known` imports them, since most need torch."""
