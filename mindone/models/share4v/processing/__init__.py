"""Preprocessing without MindSpore: images, tokens, chat messages and templates."""
