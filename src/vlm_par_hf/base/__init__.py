"""What every model family stands on: the model that a family inherits, backbones, losses, outputs, numerics."""
