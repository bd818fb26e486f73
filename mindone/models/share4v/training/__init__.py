"""Training ShareGPT4V by its recipe: labels on answers only, two stages, AdamW with cosine decay."""
