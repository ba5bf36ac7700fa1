"""What gradient_flow measures, on what, and how it is drawn."""
