"""Vision towers: pixel_values [B, 3, S, S] to features [B, N, D]."""
