"""Captions and answers about pictures: the pipelines and their commands."""
