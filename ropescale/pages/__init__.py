"""Pages: one HTML file each, in one look, that opens from disk, loads nothing and runs nothing."""
