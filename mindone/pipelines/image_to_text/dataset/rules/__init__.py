"""Rules for captions and the retry policy; pure text functions."""
