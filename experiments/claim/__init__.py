"""The claims of the field, and how each is settled."""
