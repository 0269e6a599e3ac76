"""How far an optimizer step moves the weights: exact or sampled, on one device or many."""
