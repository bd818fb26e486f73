"""GGUF checkpoints, llama.cpp's format: a language model and its `mmproj` file, read and written."""
