"""What `train` is made of: options, devices and processes, the loop, progress, signals, figures."""
