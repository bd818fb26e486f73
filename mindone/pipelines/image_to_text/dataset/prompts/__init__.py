"""Prompts of a data set: styles, variables and the plan that turns an input into a prompt."""
