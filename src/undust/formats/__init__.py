"""Files ↔ models: the only package that knows what a key or a field is called elsewhere."""
