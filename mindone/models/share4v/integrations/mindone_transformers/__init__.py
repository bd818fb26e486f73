"""Adapters for mindone.transformers; importing one of these modules imports that library, which takes seconds."""
