"""What the callbacks of a user guarantee, found out by playing dispatchers against them."""
