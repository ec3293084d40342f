"""What a user does to the activations of a model that exists: audit, lean, swap, anneal, prune."""
