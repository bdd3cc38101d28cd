"""Labels by rules and by language models, each tested on text that it was not made from, and stored with its source."""
