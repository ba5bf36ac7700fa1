"""The gradient laboratory: how far back a recurrent network's gradient reaches."""
