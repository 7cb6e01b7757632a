"""Training data: documents tokenised once, filtered, split, mixed and packed into rows, with an account of them."""
