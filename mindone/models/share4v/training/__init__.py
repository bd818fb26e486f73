"""Training with ShareGPT4V's recipe: loss on answers only, two stages, AdamW with cosine decay."""
