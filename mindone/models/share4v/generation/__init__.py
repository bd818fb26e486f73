"""Generation: KV cache, prefill, decoding, sampling, beam search, continuous batching and streaming."""
