"""Projectors from the vision tower's features to the language model's embeddings."""
