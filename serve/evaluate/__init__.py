"""Evaluation of features: kNN, linear probe, few labels."""
