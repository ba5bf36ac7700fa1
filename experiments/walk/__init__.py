"""What the walkthrough reads out of one sentence, and how it shows it."""
