"""Deployment of trained policies: export, serving, model cards, the Hugging Face hub."""
