"""Asks a person the questions that teach a model most, and learns from the answers."""
