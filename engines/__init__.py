"""Run models: load, lease, generate, evict."""
