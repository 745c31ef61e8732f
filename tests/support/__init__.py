"""What tests are made of, by what it is."""
