"""The tasks that ropescale adds to the harness, a folder for each family; `--include_path` takes this folder."""
