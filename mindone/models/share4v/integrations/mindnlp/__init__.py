"""mindnlp's LLaMA as a language model, which runs in a separate process."""
