"""Helpers of the documentation tests: parsing pages, running their code blocks, and a stand-in checkpoint."""
