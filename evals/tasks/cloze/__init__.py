"""Short cloze questions: what a model that lost its short prompts answers worse than before."""
