"""What a C compiler makes faster than XLA does, on a CPU that has one; nothing depends on it."""
