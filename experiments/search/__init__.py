"""What `sweep` is made of: the options that are swept, their points, and who trains them."""
