"""mindnlp's LLaMA as a language model, run in a process of its own."""
