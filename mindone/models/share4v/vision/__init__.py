"""Vision towers: pixel_values [B, 3, S, S] to image features [B, N, D]."""
