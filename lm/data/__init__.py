"""Text to batches: corpora, vocabularies, and batches as pure functions of the step."""
