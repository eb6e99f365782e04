"""What a network that reads images has learned: feature maps, channels, gradients, attribution."""
