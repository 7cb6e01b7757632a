"""Methods that change the attention score, or the distance that it sees."""
