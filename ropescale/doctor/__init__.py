"""What is wrong with the positions of a checkpoint, an adapter or a loaded model. Reads, and changes nothing."""
