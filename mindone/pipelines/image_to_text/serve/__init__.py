"""HTTP server: the APIs of OpenAI, Anthropic and Ollama in front of the generation engine."""
