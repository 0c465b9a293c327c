"""One adapter per framework: it turns trees of arrays into flat float64 vectors and back."""
