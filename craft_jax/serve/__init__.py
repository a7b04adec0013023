"""A trained model over HTTP: OpenAI's completions, on the engine."""
