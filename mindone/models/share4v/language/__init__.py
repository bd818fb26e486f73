"""Language models: token embeddings and a cache to logits."""
