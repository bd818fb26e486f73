"""What the tests compare with: transformers' LLaVA with random weights, written in every published form, and more."""
