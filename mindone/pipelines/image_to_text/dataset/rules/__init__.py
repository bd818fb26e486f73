"""Rules for the text of captions, and the retry policy; they need no model."""
