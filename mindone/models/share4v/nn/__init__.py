"""Layers and operators shared by the vision tower, the projector and the language model."""
