"""Inference for a data set: the only part of it that imports MindSpore."""
