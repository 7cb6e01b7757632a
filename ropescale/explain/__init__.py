"""What rotary positions do to a score: numbers, and one page for a person. Reads configs, never weights."""
