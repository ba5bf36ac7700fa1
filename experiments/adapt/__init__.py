"""What `evaluate --adapt` is made of: methods, the search for their rates, the figure."""

METHODS = ("static", "dynamic", "cache", "both")
