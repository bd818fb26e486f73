"""Captioning a data set: inputs are listed once, captions go into a journal, outputs are made from the journal."""
