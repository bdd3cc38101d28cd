"""Labels by language models: written from examples, tested by detection on others, stored with their source."""
