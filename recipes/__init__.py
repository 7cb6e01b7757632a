"""Brief fine-tunes that make an extension hold: what is trained on, how, and on which machines."""
