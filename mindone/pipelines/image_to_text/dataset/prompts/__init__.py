"""Prompts of a data set: styles, variables, and the plan that chooses the prompts of each input."""
