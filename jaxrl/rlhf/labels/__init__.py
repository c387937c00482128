"""Labels by people, programs and models."""
