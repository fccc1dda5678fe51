"""What does the whole mesh know? A replicated map of signed entries. Start reading at entry.py."""
