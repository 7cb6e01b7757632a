"""Methods that change the frequencies by which queries and keys rotate: one file a method."""
