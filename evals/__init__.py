"""Evidence that an extension worked: what is measured on a model, and the report of it."""
