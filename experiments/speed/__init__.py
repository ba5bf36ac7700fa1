"""Ours beside what users would pick instead: the same work, timed in turns."""
