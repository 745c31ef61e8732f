"""Pictures with what is right about them."""
