"""The page for people: the same answers as the API's, drawn.

`matrix` arranges cells (pure, and used by the command line too), `page` serves the templates and
the static files. Nothing here is fetched from anywhere else, and the page works without its script.
"""
