"""What `train` is made of: options, the loop, progress, signals, figures."""
