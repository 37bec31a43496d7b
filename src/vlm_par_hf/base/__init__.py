"""What all model families share: base classes, configuration, processor, losses, decisions, outputs, numerics."""
